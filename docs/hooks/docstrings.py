"""Convert the particulars of TRL's docstring style, which this package follows, into what the site can render."""

import re
from typing import Any

import griffe

REFERENCE = re.compile(r"\[`(~?[\w.]+)`\]")
FIELD_GROUP = re.compile(r"(?:^Args:\n+)?^ +> (Parameters that .*)\n+", flags=re.MULTILINE)
LIST_WITHOUT_BLANK_LINE = re.compile(r"^((?:> )?)(?!- |>?$)(.*)\n(?=\1- )", flags=re.MULTILINE)
TRL = "https://huggingface.co/docs/trl/grpo_trainer"


class TRLDocstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.is_class:
            # The signature of a class shows its fields, and the overridden method has the description of its override.
            # Marking them as private does not work: an alias of their class needs the alias of the member.
            for name, member in list(obj.members.items()):
                if not member.is_alias and member.docstring is None and name != "__init__":
                    obj.del_member(name)
        if obj.docstring is None:
            return

        def link(reference: re.Match) -> str:
            path = reference[1].removeprefix("~")
            label = path.split(".")[-1] if reference[1].startswith("~") else path
            if path.startswith("trl."):
                return f"[`{label}`]({TRL}#{path})"
            return f"[`{label}`][{path if reference[1].startswith('~') else in_scope(obj, path)}]"

        text = REFERENCE.sub(link, obj.docstring.value)
        text = FIELD_GROUP.sub(r"Args: \1\n", text)
        obj.docstring.value = LIST_WITHOUT_BLANK_LINE.sub(r"\1\2\n\1\n", text)


def in_scope(obj: griffe.Object, name: str) -> str:
    """The full path of the object that the name refers to in the docstring."""
    first, *rest = name.split(".")
    return ".".join([obj.resolve(first), *rest])

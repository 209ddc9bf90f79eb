"""Help texts of options, which `--help` takes from `Args:` in the docstring of the config class."""

import re
from dataclasses import fields
from inspect import cleandoc
from types import MappingProxyType
from typing import TypeVar

Config = TypeVar("Config")

OPTION = re.compile(r"^    (\w+): (.+(?:\n(?: {8}.+)?)*)", flags=re.MULTILINE)
LINK = re.compile(r"\[`~?(?:\w+\.)*(\w+)`\]")


def with_help(config: type[Config]) -> type[Config]:
    """Set the `help` of each field that a dataclass declares to the field's text in the class docstring.

    A field that changes an inherited default and has no text keeps the inherited text.
    """
    texts = option_texts(config.__doc__ or "")
    inherited = {
        name: option.metadata
        for base in reversed(config.__mro__[1:])
        for name, option in getattr(base, "__dataclass_fields__", {}).items()
    }
    for option in fields(config):  # type: ignore[arg-type]  # a dataclass
        if option.name in texts:
            option.metadata = MappingProxyType({"help": texts[option.name]})
        elif option.name in config.__annotations__:
            option.metadata = inherited[option.name]
    return config


def option_texts(docstring: str) -> dict[str, str]:
    """Return the texts under `Args:` by option, each as one line for argparse."""
    _, _, listed = cleandoc(docstring).partition("\nArgs:\n")
    found = {name: " ".join(LINK.sub(r"`\1`", text).split()) for name, text in OPTION.findall(listed)}
    return {name: text.replace("%", "%%") for name, text in found.items()}

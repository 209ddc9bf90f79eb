"""The parser of a command: its help in groups, the package's own options first, and errors in one sentence."""

from argparse import Action
from collections.abc import Sequence
from dataclasses import fields
from inspect import get_annotations
from typing import Any, NoReturn

from trl import TrlParser

from canon_trl.options import did_you_mean

ABOUT = (
    "Options come from a recipe, from flags, or from both; a flag overrides the recipe. --config names a recipe: the "
    "path of a YAML file, or a name that `canon-trl recipes` lists."
)

# The groups of the help in their order: the title, and the classes that declare the options. A class that is listed
# nowhere is one of the command, whose options come first.
OF_COMMAND = "Options of this command"
GROUPS = {
    "Data and rewards": ("RecipeArguments", "ScriptArguments"),
    "CANON": ("CANONConfig",),
    "A*-PO": ("AStarPOConfig",),
    "Methods of the stages": ("StagesConfig",),
    "The run": ("RunConfig",),
    "TRL's GRPO": ("GRPOConfig", "_BaseConfig"),
    "Trainer of transformers": ("TrainingArguments",),
    "Model": ("ModelConfig",),
}


class Parser(TrlParser):
    """The parser of the given classes of options."""

    def __init__(self, classes: Sequence[type], *, command: str) -> None:
        self._titles = {option: title for each in classes for option, title in titles_of(each).items()}
        self._groups: dict[str, Any] = {}
        usage = f"%(prog)s {command} [--config RECIPE] [--OPTION VALUE ...]"
        super().__init__(classes, prog="canon-trl", usage=usage, description=ABOUT)

    def add_argument(self, *names: str, **options: Any) -> Action:
        """Add an option to its group."""
        title = self._titles.get(options.get("dest", names[0].lstrip("-")))
        if title is None:  # --help
            return super().add_argument(*names, **options)
        if not self._groups:
            used = {*self._titles.values()}
            self._groups = {each: self.add_argument_group(each) for each in (OF_COMMAND, *GROUPS) if each in used}
        return self._groups[title].add_argument(*names, **options)

    def check_names(self, flags: Sequence[str]) -> None:
        """Raise an error that names the first unknown option, and the nearest known one."""
        for unknown in self.parse_known_args(flags)[1]:
            if not unknown.startswith("-"):
                raise ValueError(f"unexpected argument {unknown!r}; write --OPTION VALUE, and --config for a recipe")
            name = unknown.split("=")[0]
            nearest = did_you_mean("--" + name[2:].replace("-", "_"), [f"--{each}" for each in self._titles])
            raise ValueError(f"unknown option {name!r}{nearest}")

    def error(self, message: str) -> NoReturn:
        """Raise an error, instead of printing several hundred lines of usage."""
        raise ValueError(message)


def titles_of(options: type) -> dict[str, str]:
    """Return the title of the group of each option of a class: that of the first class to declare the option."""
    owners: dict[str, str] = {}
    for each in reversed(options.__mro__):
        for name in get_annotations(each):
            owners.setdefault(name, each.__name__)
    titles = {owner: title for title, classes in GROUPS.items() for owner in classes}
    return {option.name: titles.get(owners[option.name], OF_COMMAND) for option in fields(options) if option.init}

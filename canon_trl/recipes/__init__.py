"""The recipes in this folder, and how a recipe is read: YAML, in which `base` names another recipe that it changes."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from canon_trl.options import did_you_mean

FOLDER = Path(__file__).parent
BASE = "base"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_recipe(name: str | Path, *, field: str = "--config", folder: Path = Path()) -> Path:
    """Return the file of a recipe, given as a path or as the name of a shipped recipe.

    Args:
        name: path of a file, relative to `folder`, or name of a shipped recipe with or without `.yaml`.
        field: what the error message calls the name.
        folder: where relative paths start.

    Raises:
        ValueError: there is neither such a file nor such a recipe.
    """
    if (path := folder / name).is_file():
        return path
    path = Path(name)
    if path.name == str(name) and path.name.removesuffix(".yaml") in recipe_names():
        return FOLDER / f"{path.name.removesuffix('.yaml')}.yaml"
    nearest = did_you_mean(path.name.removesuffix(".yaml"), recipe_names())
    raise ValueError(f"{field}={str(name)!r} is neither a file nor a shipped recipe{nearest}")


def read_recipe(name: str | Path, known: Collection[str] | None = None) -> dict[str, Any]:
    """Return the options of a recipe: those of its base, replaced by its own.

    Args:
        name: path of a file or name of a shipped recipe.
        known: the options that exist. Default: any.

    Raises:
        ValueError: a file is missing or is not a YAML mapping, bases form a cycle, or an option is unknown.
    """
    layers = read_layers(find_recipe(name))
    for path, options in layers:
        for option in options:
            if known is not None and option not in known:
                raise ValueError(f"{path}: unknown option {option!r}{did_you_mean(str(option), known)}")
    return {option: value for _, options in reversed(layers) for option, value in options.items()}


def read_layers(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return a recipe and its bases, each with its file and the options that it sets."""
    layers: list[tuple[Path, dict[str, Any]]] = []
    while True:
        options = read_yaml(path)
        base = options.pop(BASE, None)
        layers.append((path, options))
        if base is None:
            return layers
        if not isinstance(base, str):
            raise ValueError(f"{path}: {BASE}={base!r} must be the name of one recipe")
        following = find_recipe(base, field=f"{path}: {BASE}", folder=path.parent)
        if any(following.samefile(earlier) for earlier, _ in layers):
            raise ValueError(f"{path}: {BASE}={base!r} leads back to {following.name}; bases must not form a cycle")
        path = following


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain a YAML mapping of options to values")
    return content

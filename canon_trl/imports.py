"""Functions named in a YAML file or on the command line, and names that a module no longer has."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn


def is_import_path(name: str) -> bool:
    return ":" in name


def load_function(path: str, *, field: str) -> Callable[..., Any]:
    """The function at `"package.module:function"`.

    Args:
        path: import path; the module must be importable, as by `python -c "import package.module"`.
        field: the option that it was given for, named in errors.

    Raises:
        ValueError: the module or the function is missing, or what is there cannot be called.
    """
    module_name, _, function_name = path.partition(":")
    try:
        function: object = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{field}={path!r} cannot be imported as 'package.module:function': {error}") from error
    if not callable(function):
        raise ValueError(f"{field}={path!r} is a {type(function).__name__}, not a function")
    return function


def moved(module: str, successors: Mapping[str, str]) -> Callable[[str], NoReturn]:
    """The `__getattr__` of a module that has lost public names: using one raises an error that names its successor."""

    def lookup(name: str) -> NoReturn:
        if name in successors:  # an AttributeError would be replaced by `from ... import name`
            raise ImportError(f"{module}.{name} has gone; use {successors[name]} (docs/migrating.md)")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return lookup

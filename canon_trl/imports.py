"""Functions given by import path, in YAML or on the command line, and names that have moved."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn


def is_import_path(name: str) -> bool:
    return ":" in name


def load_function(path: str, *, field: str) -> Callable[..., Any]:
    """Import the function at `"package.module:function"`.

    Args:
        path: the import path; `python -c "import package.module"` must work.
        field: the option that holds the path, named in errors.

    Raises:
        ValueError: the module or the function is missing, or the object cannot be called.
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
    """Make a module's `__getattr__`, whose error names the replacement of a public name that was removed."""

    def lookup(name: str) -> NoReturn:
        if name in successors:  # `from ... import name` would replace an AttributeError by its own
            raise ImportError(f"{module}.{name} was removed; use {successors[name]} (docs/migrating.md)")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return lookup

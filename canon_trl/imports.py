"""Functions named in a YAML file or on the command line."""

import importlib
from collections.abc import Callable
from typing import Any


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

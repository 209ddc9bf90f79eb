"""What the field of a stage holds: a method or several, alike from YAML, from flags and from Python."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from canon_trl.imports import load_function
from canon_trl.method import Method, Stage, find


def find_all(stage: Stage, spec: Any) -> tuple[Method, ...]:
    """The methods that a value of a stage's field stands for, in the order in which they act.

    ```yaml
    token_advantage: entropy_shaped
    token_advantage: {entropy_shaped: {alpha: 0.1}, "my_package.masks:late": {}}
    token_advantage: [entropy_shaped, "my_package.masks:late"]
    ```

    Args:
        stage: whose methods are looked for.
        spec: a name, an import path or a function; a mapping of them to their options; a list of any of these; `None`
            for no method.

    Raises:
        ValueError: there is no such method, one is listed twice, or an option or a parameter is not what it can be.
    """
    if spec is None:
        return ()
    if isinstance(spec, Mapping):
        spec = [{name: options} for name, options in spec.items()]
    found = tuple(find(stage, each) for each in (spec if isinstance(spec, list | tuple) else [spec]))
    names = [method.name for method in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated and not stage.repeats:
        raise ValueError(f"{stage.field} lists {repeated} more than once")
    return found


def as_names(spec: Any, *, field: str) -> Any:
    """The value of a stage's field as YAML and checkpoints can hold it: functions become their import paths.

    Args:
        spec: as for [`find_all`], or JSON text of it, as flags have it.
        field: named in errors.

    Raises:
        ValueError: text that is not JSON, or a function that cannot be imported by its name.
    """
    if isinstance(spec, str) and spec.startswith(("[", "{")):
        try:
            return json.loads(spec)
        except json.JSONDecodeError as error:
            raise ValueError(f"{field}={spec!r} is not JSON: {error}") from None
    if isinstance(spec, list | tuple):
        return [as_names(each, field=field) for each in spec]
    if isinstance(spec, Mapping):
        return {as_names(name, field=field): options for name, options in spec.items()}
    if isinstance(spec, Method):
        return {spec.name: spec.options}
    if isinstance(spec, partial):
        return {as_names(spec.func, field=field): dict(spec.keywords)}
    return import_path(spec, field=field) if callable(spec) else spec


def import_path(function: Callable[..., Any], *, field: str) -> str:
    """`"package.module:function"`, by which a run that resumes finds the function again."""
    path = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"
    try:
        found = load_function(path, field=field)
    except ValueError:
        found = None
    if found is not function:
        raise ValueError(
            f"{field}={function!r} is not found at {path!r}, so no checkpoint could name it; define it with def in a "
            f"module, or give it to the trainer as {field}"
        )
    return path

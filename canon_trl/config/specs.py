"""Values of a stage's config field, from YAML, flags or Python: one method or several."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from canon_trl.imports import load_function
from canon_trl.method import Method, Stage, find


def find_all(stage: Stage, spec: Any) -> tuple[Method, ...]:
    """Find the methods that a value of a stage's config field names, in the order in which they act.

    ```yaml
    token_advantage: entropy_shaped
    token_advantage: {entropy_shaped: {alpha: 0.1}, "my_package.masks:late": {}}
    token_advantage: [entropy_shaped, "my_package.masks:late"]
    ```

    Args:
        stage: the stage to search.
        spec: a name, an import path or a function; a mapping of these to options; a list of any of these; or `None`
            for no method.

    Raises:
        ValueError: a method is unknown or listed twice, reads what is not available, or does not take an option.
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
    """Convert the value of a stage's field to a form for YAML and checkpoints: functions become import paths.

    Args:
        spec: as for [`find_all`], or the same as JSON text from a flag.
        field: the field's name, for errors.

    Raises:
        ValueError: the text is not JSON, or a function cannot be imported by its name.
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
    """Return the function's `"package.module:function"`, which a resumed run imports."""
    path = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"
    try:
        found = load_function(path, field=field)
    except ValueError:
        found = None
    if found is not function:
        raise ValueError(
            f"{field}={function!r} cannot be imported as {path!r}, so a checkpoint cannot name it; define it with def "
            f"in a module, or give it to the trainer as {field}"
        )
    return path

"""Options of a method: its keyword-only parameters, whose annotations say which values they take.

`Annotated[float, "(0, 1]"]` bounds a number and `Literal["tv", "kl"]` lists choices. Numbers, flags, text and `None`
are checked by type; any other annotation accepts every value.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import partial
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

# Bounds that many options share. float32 soon overflows above 1e6.
Share = Annotated[float, "(0, 1]"]
Positive = Annotated[float, "(0, 1e6]"]
NotNegative = Annotated[float, "[0, 1e6]"]

# The name and the test of each checked type. A flag is not a number, although Python's bool is an int.
KINDS: dict[object, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
    NoneType: ("None", lambda value: value is None),
}


def check_options(function: Callable[..., Any], options: Mapping[str, Any], *, where: str) -> None:
    """Reject unknown options, missing ones, and values that the annotations do not allow.

    Raises:
        ValueError: names the option, the value and what is allowed.
    """
    known = [p.name for p in options_of(function)]
    for name in options:
        if name not in known:
            raise ValueError(f"{where}takes no option {name!r}{did_you_mean(name, known)}; it takes {known}")
    missing = [p.name for p in options_of(function) if p.default is p.empty and p.name not in options]
    if missing:
        raise ValueError(f"{where}needs a value for {missing}")
    check_values(options, hints(function), where=where)


def check_arguments(function: Callable[..., Any], **arguments: Any) -> None:
    """Reject arguments of a direct call that the function's own annotations do not allow.

    Raises:
        ValueError: names the option, the value and what is allowed.
    """
    check_values(arguments, hints(function))


def check_values(values: Mapping[str, Any], annotations: Mapping[str, Any], *, where: str = "") -> None:
    """Reject values of the wrong type, outside their bounds or not among their choices.

    Raises:
        ValueError: names the value and what is allowed.
    """
    for name, value in values.items():
        annotation, bounds = bounded(annotations.get(name))
        if get_origin(annotation) is Literal:
            if value not in get_args(annotation):
                *others, last = map(repr, get_args(annotation))
                raise ValueError(f"{where}{name}={value!r} must be {', '.join(others)} or {last}")
            continue
        kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        if not all(kind in KINDS for kind in kinds):
            continue
        if not any(KINDS[kind][1](value) for kind in kinds):
            raise ValueError(f"{where}{name}={value!r} must be {' or '.join(KINDS[kind][0] for kind in kinds)}")
        if isinstance(value, Real) and not isinstance(value, bool) and not lies_in(float(value), bounds):
            raise ValueError(f"{where}{name}={value!r} must lie in {bounds}")


def bounded(annotation: Any) -> tuple[Any, str]:
    """Return the annotation without its bounds, and the bounds; an optional type may contain the bounded one."""
    bounds = "[-inf, inf]"
    if get_origin(annotation) is Annotated:
        annotation, bounds = get_args(annotation)[:2]
    elif get_origin(annotation) in (Union, UnionType):
        parts = [bounded(part) for part in get_args(annotation)]
        bounds = next((found for _, found in parts if found != bounds), bounds)
        annotation = Union[tuple(part for part, _ in parts)]  # noqa: UP007  # built at run time
    return annotation, bounds


def lies_in(value: float, interval: str) -> bool:
    """Whether a number lies in an interval such as `"[0, inf)"`; NaN lies in none."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    return low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")


def options_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the keyword-only parameters."""
    return [p for p in parameters(function) if p.kind is p.KEYWORD_ONLY]


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by parameter; empty if one names a type that only type checkers import."""
    target = plain_function(function)
    initialiser = vars(target).get("__init__", target) if isinstance(target, type) else target
    try:
        return get_type_hints(initialiser, include_extras=True)
    except NameError:
        return {}


def plain_function(function: Callable[..., Any]) -> Any:
    """Return the function inside any number of `functools.partial`."""
    return plain_function(function.func) if isinstance(function, partial) else function


def did_you_mean(name: str, known: Collection[str]) -> str:
    """` (did you mean 'name'?)` with the nearest known name; empty if none is near."""
    nearest = get_close_matches(name, known, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""

"""A method is a pure function: its positional parameters name what it reads, its keyword-only ones are its options.

```python
Share = Annotated[float, "(0, 1]"]


def shorter_first(rewards: Tensor, lengths: Tensor, *, share: Share = 0.1) -> Tensor: ...
```

reads `Rollout.rewards` and `Rollout.lengths` and takes the option `share`, whose bounds stand in its annotation. What
a method reads decides what the trainer computes, gathers and refuses, and it is written in the signature only.

Every stage has a folder, a dict of its methods by name, and a field of the config that chooses from it. [`find`] turns
the value of such a field into a [`Method`] with its options bound.
"""

import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from canon_trl.imports import is_import_path, load_function
from canon_trl.paper import Paper

RewardRange = Literal["[0, inf)", "[0, 1]", "{0, 1}", "{-1, 1}"]

# Bounds that many options share. Beyond 1e6 float32 soon overflows.
Share = Annotated[float, "(0, 1]"]
Positive = Annotated[float, "(0, 1e6]"]
NotNegative = Annotated[float, "[0, 1e6]"]

# What a value may be, by its annotation. A flag is not a number, though Python counts with it.
KINDS: dict[object, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
    NoneType: ("None", lambda value: value is None),
}


@dataclass(frozen=True, eq=False)
class Method:
    """A function of what a stage sees, with its options.

    Args:
        name: by which the config chooses it.
        function: positional parameters name attributes of what the stage sees; one that has the name of the whole
            (`rollout` or `tokens`) is handed the whole.
        options: bound so far.
        renamed: attributes to read in place of those that the parameters name.
        reward_range: the rewards for which the method is defined; the trainer refuses others.
        metrics: the response metrics that it reads, given its options.
        reports: numbers to log, `name -> 0-d`, read by the same rule.
        agrees_with: values of TRL's own options that say what the method does, and may be set together with it.
    """

    name: str
    function: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    reward_range: RewardRange | None = None
    metrics: Callable[[Mapping[str, Any]], tuple[str | Callable[..., Any], ...]] | None = None
    reports: Callable[..., Mapping[str, Any]] | None = None
    agrees_with: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, seen: Any, **options: Any) -> Any:
        return self.function(*read(seen, self.reads), **(self.options | options))

    @property
    def reads(self) -> tuple[str, ...]:
        """The attributes that its positional parameters stand for, in order."""
        named = (p.name for p in parameters(self.function) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
        return tuple(self.renamed.get(name, name) for name in named)

    @property
    def paper(self) -> Paper | None:
        """The `PAPER` of the file that defines the function."""
        return paper_of(self.function)

    @property
    def papers(self) -> dict[str, Paper]:
        """The papers that a model trained with it cites, by the names of their methods."""
        return {} if self.paper is None else {self.name: self.paper}

    @property
    def required_metrics(self) -> tuple[str | Callable[..., Any], ...]:
        """The response metrics that it reads, by name or as functions."""
        if self.metrics is not None:
            return self.metrics(self.all_options)
        metrics: tuple[str | Callable[..., Any], ...] = declared(self.function, "required_metrics", ())
        return metrics

    @property
    def all_options(self) -> dict[str, Any]:
        """Its options, with the defaults of those that are not bound."""
        defaults = {p.name: p.default for p in options_of(self.function) if p.default is not p.empty}
        return defaults | self.options

    def with_options(self, options: dict[str, Any], *, where: str) -> "Method":
        """The method with these options bound.

        Args:
            options: by name.
            where: what they were given as, for the message.

        Raises:
            ValueError: it does not take one, lacks one, or a value is of another kind or out of its bounds.
        """
        bound = self.function.keywords if isinstance(self.function, partial) else {}
        check_options(self.function, bound | self.options | options, where=where)
        return replace(self, options=self.options | options)


@dataclass(frozen=True)
class Stage:
    """A place between the rewards and the gradient where methods act.

    Args:
        field: of the config, which chooses its methods.
        methods: by name.
        supplies: what a method of the stage can read, by parameter name.
        repeats: whether a method may be chosen more than once, with other options.
        called_in: the file of this package in which the hook calls them.
    """

    field: str
    methods: Mapping[str, Method]
    supplies: Collection[str] = ()
    repeats: bool = False
    called_in: str = ""


def by_name(*methods: Method) -> dict[str, Method]:
    """The dict of a stage."""
    return {method.name: method for method in methods}


def find(stage: Stage, spec: Any, options: dict[str, Any] | None = None) -> Method:
    """The method that a value of a stage's field stands for, with its options bound.

    Args:
        stage: whose method is looked for.
        spec: a name, `{name: options}`, an import path `"package.module:function"`, or a function.
        options: in place of those that `spec` has.

    Raises:
        ValueError: there is none, or an option or a parameter of it is not what it can be.
    """
    if isinstance(spec, Mapping):
        if len(spec) != 1:
            raise ValueError(f"{stage.field}={dict(spec)!r} must have one entry, name: options")
        ((spec, own),) = spec.items()
        own = {} if own is None else own
        if not isinstance(own, Mapping):
            raise ValueError(f"{stage.field}: the options of {spec!r} are {own!r}; they must be a mapping by name")
        options = dict(own) if options is None else options
    method = spec if isinstance(spec, Method) else named(stage, spec)
    unknown = [name for name in method.reads if stage.supplies and name not in stage.supplies]
    if unknown:
        raise ValueError(
            f"{stage.field}: {method.name} reads {unknown}{did_you_mean(unknown[0], stage.supplies)}, which nothing "
            f"supplies; what can be read is {sorted(stage.supplies)}. Options are keyword-only: they stand after a *"
        )
    return method.with_options(options or {}, where=f"{stage.field} {method.name!r}: ")


def named(stage: Stage, spec: Any) -> Method:
    """The method of a name, an import path or a function."""
    if isinstance(spec, str) and spec in stage.methods:
        return stage.methods[spec]
    if isinstance(spec, partial) and isinstance(spec.func, Method):
        return spec.func.with_options(spec.keywords, where=f"{stage.field} {spec.func.name!r}: ")
    if isinstance(spec, str) and is_import_path(spec):
        function = load_function(spec, field=stage.field)
        return Method(spec, function, reward_range=declared(function, "reward_range"))
    if isinstance(spec, str) or not callable(spec):
        raise ValueError(
            f"{stage.field}={spec!r} is unknown{did_you_mean(str(spec), stage.methods)}; choose one of "
            f"{sorted(stage.methods)} or give an import path 'package.module:function'"
        )
    return Method(name_of(spec), spec, reward_range=declared(spec, "reward_range"))


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Words that name the nearest of the known names, if one is near."""
    nearest = get_close_matches(name, known, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def read(seen: Any, names: tuple[str, ...]) -> list[Any]:
    """Those attributes of what a stage sees; its own name stands for the whole."""
    whole = type(seen).__name__.lower()
    return [seen if name == whole else getattr(seen, name) for name in names]


def plain_function(function: Callable[..., Any]) -> Any:
    """The function within `functools.partial`."""
    return plain_function(function.func) if isinstance(function, partial) else function


def name_of(function: Callable[..., Any]) -> str:
    """Its name in code; for a callable object that of its class."""
    return getattr(plain_function(function), "__name__", type(function).__name__)


def paper_of(function: Callable[..., Any]) -> Paper | None:
    """The `PAPER` of the file that defines a function or class."""
    return getattr(sys.modules.get(inspect.unwrap(plain_function(function)).__module__), "PAPER", None)


def declared(function: Callable[..., Any], attribute: str, default: Any = None) -> Any:
    """What the function declares in an attribute of its own, also within `functools.partial`."""
    if isinstance(function, partial) and not hasattr(function, attribute):
        return declared(function.func, attribute, default)
    return getattr(function, attribute, default)


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def options_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The keyword-only parameters."""
    return [p for p in parameters(function) if p.kind is p.KEYWORD_ONLY]


def check_options(function: Callable[..., Any], options: Mapping[str, Any], *, where: str) -> None:
    """Refuse options that a function does not take, the lack of one that it needs, and values out of bounds.

    Raises:
        ValueError: names the option, the value and what is allowed.
    """
    known = [p.name for p in options_of(function)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters(function))
    for name in options:
        if name not in known and not takes_any:
            raise ValueError(f"{where}takes no option {name!r}{did_you_mean(name, known)}; it takes {known}")
    missing = [p.name for p in options_of(function) if p.default is p.empty and p.name not in options]
    if missing:
        raise ValueError(f"{where}lacks {missing}, which it needs")
    check_values(options, hints(function), where=where)


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by parameter; none for a function that names types which exist for type checkers only."""
    target = plain_function(function)
    initialiser = vars(target).get("__init__", target) if isinstance(target, type) else target
    try:
        return get_type_hints(initialiser, include_extras=True)
    except NameError:
        return {}


def check_values(values: Mapping[str, Any], annotations: Mapping[str, Any], *, where: str = "") -> None:
    """Refuse values of another kind than their annotations say, or out of the bounds that those have.

    `Annotated[float, "(0, 1]"]` bounds a number, `Literal["tv", "kl"]` lists choices; other annotations than numbers,
    flags, text and `None` are not looked at.

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
    """The plain annotation, and its bounds: `Annotated[float, "(0, 1]"]`, also within an optional one."""
    bounds = "[-inf, inf]"
    if get_origin(annotation) is Annotated:
        annotation, bounds = get_args(annotation)[:2]
    elif get_origin(annotation) in (Union, UnionType):
        parts = [bounded(part) for part in get_args(annotation)]
        bounds = next((found for _, found in parts if found != bounds), bounds)
        annotation = Union[tuple(part for part, _ in parts)]  # noqa: UP007  # built at run time
    return annotation, bounds


def lies_in(value: float, interval: str) -> bool:
    """Whether a number lies in an interval such as `"[0, inf)"`, whose square bracket includes its end; NaN never."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    return low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")

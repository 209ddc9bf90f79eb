"""A method is a pure function: its positional parameters name what it reads, its keyword-only ones are its options.

```python
Share = Annotated[float, "(0, 1]"]


def shorter_first(rewards: Tensor, lengths: Tensor, *, share: Share = 0.1) -> Tensor: ...
```

reads `Rollout.rewards` and `Rollout.lengths` and takes the option `share`, whose annotation holds its bounds. The
signature alone decides what the trainer computes, gathers and rejects for the method.

Every stage has a folder, a dict of its methods by name, and a config field that chooses among them. [`find`] turns the
value of such a field into a [`Method`] with its options bound.
"""

import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from canon_trl.imports import is_import_path, load_function
from canon_trl.options import check_options, did_you_mean, options_of, parameters, plain_function
from canon_trl.paper import Paper

RewardRange = Literal["[0, inf)", "[0, 1]", "{0, 1}", "{-1, 1}"]


@dataclass(frozen=True, eq=False)
class Method:
    """A function of a stage's input, with its options.

    Args:
        name: the name that the config uses.
        function: its positional parameters name attributes of the stage's input, a `Rollout` or `Tokens`. A parameter
            named `rollout` or `tokens` receives the whole input.
        options: the options bound so far.
        renamed: the attribute to read for a parameter of another name.
        reward_range: the rewards that the method is defined for; the trainer rejects others.
        metrics: returns the response metrics that the method reads with given options.
        reports: returns numbers to log, 0-d by name; its parameters work as those of `function`.
        agrees_with: values of TRL's own options that describe the method, so that users may set them too.
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
        """The attributes that its positional parameters read, in order."""
        named = (p.name for p in parameters(self.function) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
        return tuple(self.renamed.get(name, name) for name in named)

    @property
    def paper(self) -> Paper | None:
        """The `PAPER` of the file that defines the function."""
        return paper_of(self.function)

    @property
    def papers(self) -> dict[str, Paper]:
        """The papers to cite in a model card, by method name."""
        return {} if self.paper is None else {self.name: self.paper}

    @property
    def required_metrics(self) -> tuple[str | Callable[..., Any], ...]:
        """The response metrics that it reads, as names or functions."""
        if self.metrics is not None:
            return self.metrics(self.all_options)
        metrics: tuple[str | Callable[..., Any], ...] = declared(self.function, "required_metrics", ())
        return metrics

    @property
    def all_options(self) -> dict[str, Any]:
        """Its options, with defaults for those that are not bound."""
        defaults = {p.name: p.default for p in options_of(self.function) if p.default is not p.empty}
        return defaults | self.options

    @property
    def smallest_group(self) -> int:
        """The fewest responses per prompt that it can learn from, with its options."""
        return 1

    def with_options(self, options: dict[str, Any], *, where: str) -> "Method":
        """Return the method with these options bound.

        Args:
            options: values by name.
            where: start of the error message.

        Raises:
            ValueError: an option is unknown, missing, of the wrong type or out of its bounds.
        """
        bound = self.function.keywords if isinstance(self.function, partial) else {}
        check_options(self.function, bound | self.options | options, where=where)
        return replace(self, options=self.options | options)


@dataclass(frozen=True)
class Stage:
    """A place between the rewards and the gradient where methods act.

    Args:
        field: the config field that chooses its methods.
        methods: the methods by name.
        supplies: the names that its methods can read; empty if they depend on the dataset.
        repeats: whether one method may be chosen several times.
        called_in: the file of this package that calls the methods.
    """

    field: str
    methods: Mapping[str, Method]
    supplies: Collection[str] = ()
    repeats: bool = False
    called_in: str = ""


def by_name(*methods: Method) -> dict[str, Method]:
    """Make the dict of a stage."""
    return {method.name: method for method in methods}


def find(stage: Stage, spec: Any, options: dict[str, Any] | None = None) -> Method:
    """Find the method that a value of a stage's config field names, and bind its options.

    Args:
        stage: the stage to search.
        spec: a name, `{name: options}`, an import path `"package.module:function"`, or a function.
        options: replace the options in `spec`.

    Raises:
        ValueError: the method is unknown, reads what is not available, or does not take an option.
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
    if stage.supplies:
        check_readable(method, stage.supplies, field=stage.field)
    return method.with_options(options or {}, where=f"{stage.field} {method.name!r}: ")


def check_readable(method: Method, available: Collection[str], *, field: str) -> None:
    """Reject a method that reads what is not available.

    Raises:
        ValueError: names the parameters and what is available.
    """
    if unknown := [name for name in method.reads if name not in available]:
        raise ValueError(
            f"{field}: {method.name} reads {unknown}{did_you_mean(unknown[0], available)}, which is not available; "
            f"available: {sorted(available)}. Options must be keyword-only"
        )


def named(stage: Stage, spec: Any) -> Method:
    """Return the method for a name, an import path or a function."""
    if isinstance(spec, str) and spec in stage.methods:
        return stage.methods[spec]
    if isinstance(spec, partial) and isinstance(spec.func, Method):
        return spec.func.with_options(spec.keywords, where=f"{stage.field} {spec.func.name!r}: ")
    if isinstance(spec, str) and is_import_path(spec):
        name, function = spec, load_function(spec, field=stage.field)
    elif callable(spec):
        name, function = name_of(spec), spec
    else:
        raise ValueError(
            f"{stage.field}={spec!r} is unknown{did_you_mean(str(spec), stage.methods)}; choose one of "
            f"{sorted(stage.methods)} or give an import path 'package.module:function'"
        )
    return Method(name, function, reward_range=declared(function, "reward_range"))


def read(seen: Any, names: tuple[str, ...]) -> list[Any]:
    """Return the named attributes of a stage's input; the input's own name returns the whole."""
    whole = type(seen).__name__.lower()
    return [seen if name == whole else getattr(seen, name) for name in names]


def name_of(function: Callable[..., Any]) -> str:
    """Return the function's name in code; for a callable object, the name of its class."""
    return getattr(plain_function(function), "__name__", type(function).__name__)


def paper_of(function: Callable[..., Any]) -> Paper | None:
    """Return the `PAPER` of the file that defines a function or class."""
    return getattr(sys.modules.get(inspect.unwrap(plain_function(function)).__module__), "PAPER", None)


def declared(function: Callable[..., Any], attribute: str, default: Any = None) -> Any:
    """Return an attribute that the function has, also inside `functools.partial`."""
    if isinstance(function, partial) and not hasattr(function, attribute):
        return declared(function.func, attribute, default)
    return getattr(function, attribute, default)

"""A weighted sum of advantage estimators."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from canon_trl.method import Method, RewardRange, Stage, find
from canon_trl.options import check_values
from canon_trl.paper import Paper
from canon_trl.rollout import Rollout

Parts = tuple[tuple[Method, float], ...]


def mix(rollout: Rollout, *, parts: Parts) -> Tensor:
    """Sum the advantages of several estimators by weight: `{"mix": {"canon": 0.5, "opo": 0.5}}`.

        A_i = sum_m w_m * A_i^m

    It has no paper. A weight is any number. An estimator's options go next to its weight:
    `{"mix": {"grpo": 0.5, "a_grae": {"weight": 0.5, "form": "released"}}}`. Name your own estimators by import path.
    The mix accepts the rewards that all of its estimators accept.

    Use it to try a method in small doses, or to interpolate between two.

    Returns:
        `(P, G)`, or `(P, G, T)` if one of the estimators is token-level.
    """
    terms: list[Tensor] = [weight * method(rollout) for method, weight in parts]
    if any(term.dim() == 3 for term in terms):
        terms = [term if term.dim() == 3 else term.unsqueeze(-1) for term in terms]
    return sum(terms[1:], terms[0])


@dataclass(frozen=True, eq=False)
class Mix(Method):
    """[`mix`] as an estimator, whose options are names of other estimators and their weights.

    Args:
        stage: the stage of the estimators.
        parts: the estimators and their weights.
    """

    stage: Stage | None = None
    parts: Parts = ()

    def __call__(self, seen: Any, **options: Any) -> Tensor:
        mixed = self.with_options(options, where="mix: ") if options else self
        return mix(seen, parts=mixed.parts)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*super().reads, *(name for method, _ in self.parts for name in method.reads)]))

    @property
    def papers(self) -> dict[str, Paper]:
        return {name: paper for method, _ in self.parts for name, paper in method.papers.items()}

    @property
    def required_metrics(self) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(metric for method, _ in self.parts for metric in method.required_metrics))

    @property
    def smallest_group(self) -> int:
        return max((method.smallest_group for method, _ in self.parts), default=1)

    def with_options(self, options: dict[str, Any], *, where: str) -> "Mix":
        """Return the mix of these estimators.

        Raises:
            ValueError: there is no estimator, an estimator is unknown or does not take an option, a weight is not a
                number, or no rewards suit all estimators.
        """
        assert self.stage is not None
        options = self.options | options
        if not options:
            raise ValueError(f"{where}names no estimators; give weights by name, such as {{'canon': 0.5, 'opo': 0.5}}")
        parts = []
        for name, given in options.items():
            own = dict(given) if isinstance(given, Mapping) else {"weight": given}
            weight = own.pop("weight", None)
            check_values({"weight": weight}, {"weight": float}, where=f"{where}{name}: ")
            parts.append((find(self.stage, name, own), weight))
        ranges = [method.reward_range for method, _ in parts]
        return replace(self, options=options, parts=tuple(parts), reward_range=narrowest(ranges, where=where))


def narrowest(ranges: list[RewardRange | None], *, where: str) -> RewardRange | None:
    """Return the range that lies within all the others; `None` means any reward.

    Raises:
        ValueError: none of them does.
    """
    narrow = set(ranges) - {None}
    for inner, outer in ("[0, 1]", "[0, inf)"), ("{0, 1}", "[0, 1]"), ("{0, 1}", "[0, inf)"):
        if inner in narrow:
            narrow -= {outer}
    if len(narrow) > 1:
        raise ValueError(f"{where}no rewards suit all estimators, which are defined for {sorted(map(str, narrow))}")
    return next(iter(narrow), None)

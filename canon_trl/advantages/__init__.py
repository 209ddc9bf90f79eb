"""Advantage estimators: what turns the rewards of a prompt group into advantages.

Each method is a pure function of `(P, G)` tensors in a file of its family. [`ESTIMATORS`] names them for the config;
there an estimator is called with a [`~canon_trl.rollout.Rollout`] and its options and returns `(P, G)`, or `(P, G, T)`
where the method is token-level.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from canon_trl.advantages.a_grae import a_grae_advantage
from canon_trl.advantages.astar_po import optimal_value
from canon_trl.advantages.canon import (
    canon_advantage,
    inter_group_advantage,
    intra_group_advantage,
    split_by_metric,
)
from canon_trl.advantages.group_relative import dr_grpo_advantage, grpo_advantage, rloo_advantage
from canon_trl.advantages.maxrl import maxrl_advantage
from canon_trl.advantages.opo import opo_advantage
from canon_trl.advantages.reinforce import nsr_advantage, psr_advantage, w_reinforce_advantage
from canon_trl.advantages.reinforce_pp import reinforce_pp_baseline_advantage
from canon_trl.imports import is_import_path, load_function
from canon_trl.rollout import Rollout

AdvantageEstimator = Callable[..., Tensor]
RewardRange = Literal["[0, 1]", "{0, 1}"]


@dataclass(frozen=True)
class OnRollout:
    """A pure function of tensors as an estimator: its positional arguments are these fields of the rollout.

    `reward_range` says for which rewards the method is defined; the trainer refuses others.
    """

    function: Callable[..., Tensor]
    fields: tuple[str, ...]
    reward_range: RewardRange | None = None

    def __call__(self, rollout: Rollout, **options: Any) -> Tensor:
        return self.function(*(getattr(rollout, field) for field in self.fields), **options)


def canon_estimator(rollout: Rollout, *, metric: str, **options: Any) -> Tensor:
    """[`canon_advantage`] of the rollout, regrouped by the metric of that name."""
    return canon_advantage(rollout.rewards, rollout.metrics[metric], valid=rollout.valid, **options)


ESTIMATORS: dict[str, AdvantageEstimator] = {
    "canon": canon_estimator,
    "grpo": OnRollout(grpo_advantage, ("rewards",)),
    "dr_grpo": OnRollout(dr_grpo_advantage, ("rewards",)),
    "rloo": OnRollout(rloo_advantage, ("rewards",)),
    "reinforce_pp_baseline": OnRollout(reinforce_pp_baseline_advantage, ("rewards", "lengths")),
    "opo": OnRollout(opo_advantage, ("rewards", "lengths")),
    "a_grae": OnRollout(a_grae_advantage, ("rewards",), reward_range="[0, 1]"),
    "psr": OnRollout(psr_advantage, ("rewards",), reward_range="{0, 1}"),
    "nsr": OnRollout(nsr_advantage, ("rewards",), reward_range="{0, 1}"),
    "w_reinforce": OnRollout(w_reinforce_advantage, ("rewards",), reward_range="{0, 1}"),
}


def requires_metrics(*names: str) -> Callable[[AdvantageEstimator], AdvantageEstimator]:
    """Declare the metrics that an estimator reads, so that the trainer computes those and no others.

    ```python
    @requires_metrics("entropy")
    def certain_first(rollout):
        centred = rollout.rewards - rollout.rewards.nanmean(dim=1, keepdim=True)
        return centred / (1 + rollout.metrics["entropy"])
    ```

    Args:
        names: built-in metrics ("entropy", "length", "surprisal", "random") or import paths
            `"package.module:function"`.
    """

    def declare(estimator: AdvantageEstimator) -> AdvantageEstimator:
        estimator.required_metrics = names  # type: ignore[attr-defined]  # a function's own attribute
        return estimator

    return declare


def required_metrics(estimator: AdvantageEstimator) -> tuple[str, ...]:
    """The metrics that the estimator declared with [`requires_metrics`], also within `functools.partial`."""
    if isinstance(estimator, partial) and not hasattr(estimator, "required_metrics"):
        return required_metrics(estimator.func)
    return getattr(estimator, "required_metrics", ())


def reward_range(estimator: AdvantageEstimator) -> RewardRange | None:
    """The rewards for which the estimator says that it is defined, also within `functools.partial`."""
    if isinstance(estimator, partial):
        return reward_range(estimator.func)
    return getattr(estimator, "reward_range", None)


def get_estimator(name: str) -> AdvantageEstimator:
    """The estimator of that name in [`ESTIMATORS`], or at that import path.

    Raises:
        ValueError: there is none; the message lists the known names.
    """
    if name in ESTIMATORS:
        return ESTIMATORS[name]
    if is_import_path(name):
        return load_function(name, field="advantage_estimator")
    raise ValueError(
        f"advantage_estimator={name!r} is unknown; choose one of {sorted(ESTIMATORS)} or give an import path "
        "'package.module:function'"
    )


def option_parameters(estimator: AdvantageEstimator) -> list[inspect.Parameter]:
    """What the estimator takes beside the rollout."""
    if isinstance(estimator, OnRollout):
        return list(inspect.signature(estimator.function).parameters.values())[len(estimator.fields) :]
    return list(inspect.signature(estimator).parameters.values())[1:]


def default_options(estimator: AdvantageEstimator) -> dict[str, object]:
    """The options that the estimator takes and their defaults, those bound with `functools.partial` among them."""
    return {p.name: p.default for p in option_parameters(estimator) if p.default is not p.empty}


def check_options(estimator: AdvantageEstimator, options: dict[str, object], *, field: str) -> None:
    """Refuse options that the estimator does not take, and the lack of one that it needs.

    Raises:
        ValueError: names the options, and those that the estimator takes.
    """
    parameters = option_parameters(estimator)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in named if p.default is p.empty and p.name not in options]
    if missing:
        raise ValueError(f"{field} lacks {missing}, which the estimator needs")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in named]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{field} has {unknown}, which the estimator does not take; it takes {known}")


__all__ = [
    "ESTIMATORS",
    "AdvantageEstimator",
    "RewardRange",
    "a_grae_advantage",
    "canon_advantage",
    "canon_estimator",
    "check_options",
    "default_options",
    "dr_grpo_advantage",
    "get_estimator",
    "grpo_advantage",
    "inter_group_advantage",
    "intra_group_advantage",
    "maxrl_advantage",
    "nsr_advantage",
    "opo_advantage",
    "optimal_value",
    "psr_advantage",
    "reinforce_pp_baseline_advantage",
    "required_metrics",
    "requires_metrics",
    "reward_range",
    "rloo_advantage",
    "split_by_metric",
    "w_reinforce_advantage",
]

"""Advantage estimators: functions that turn the rewards of a prompt group into advantages.

Each method is a pure function of `(P, G)` tensors, in one file per method or family. [`ESTIMATORS`] holds them by the
names that the config uses. An entry takes a [`~canon_trl.rollout.Rollout`] and options and returns `(P, G)`, or
`(P, G, T)` if the method is token-level.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from canon_trl.advantages.a_grae import a_grae_advantage
from canon_trl.advantages.astar_po import optimal_value
from canon_trl.advantages.canon import (
    canon_advantage,
    canon_estimator,
    inter_group_advantage,
    intra_group_advantage,
    split_by_metric,
)
from canon_trl.advantages.dr_grpo import dr_grpo_advantage
from canon_trl.advantages.entropy_weighting import grpo_s_advantage, grpo_s_estimator, gtpo_advantage
from canon_trl.advantages.gdpo import gdpo_advantage
from canon_trl.advantages.grpo import grpo_advantage
from canon_trl.advantages.grpo_batch import grpo_batch_advantage
from canon_trl.advantages.maxrl import maxrl_advantage
from canon_trl.advantages.mix import Mix, mix
from canon_trl.advantages.opo import opo_advantage
from canon_trl.advantages.pass_at_k import PassAtK, pass_at_k_advantage, pass_at_k_estimator
from canon_trl.advantages.pshw import HardnessWeighting, pshw_advantage
from canon_trl.advantages.reinforce import nsr_advantage, psr_advantage, w_reinforce_advantage
from canon_trl.advantages.reinforce_pp import reinforce_pp_baseline_advantage
from canon_trl.advantages.rloo import rloo_advantage
from canon_trl.advantages.stcr import stcr_advantage
from canon_trl.imports import moved
from canon_trl.method import Method, Stage, by_name
from canon_trl.metrics import ResponseMetric
from canon_trl.rollout import READABLE

ESTIMATORS = by_name(
    Method("canon", canon_estimator, metrics=lambda options: (options["metric"],)),
    Method("grpo", grpo_advantage, agrees_with={"scale_rewards": "group"}),
    Method("grpo_batch", grpo_batch_advantage, agrees_with={"scale_rewards": "batch"}),
    Method(
        "gdpo",
        gdpo_advantage,
        renamed={"weights": "reward_weights"},
        agrees_with={"multi_objective_aggregation": "normalize_then_sum"},
    ),
    Method("dr_grpo", dr_grpo_advantage),
    Method("rloo", rloo_advantage),
    Method("reinforce_pp_baseline", reinforce_pp_baseline_advantage),
    Method("opo", opo_advantage),
    Method("a_grae", a_grae_advantage, reward_range="[0, 1]"),
    Method("maxrl", maxrl_advantage, reward_range="[0, inf)"),
    Method("grpo_s", grpo_s_estimator, reward_range="{0, 1}", metrics=lambda options: ("entropy",)),
    Method("gtpo", gtpo_advantage, reward_range="{0, 1}"),
    PassAtK("pass_at_k", pass_at_k_estimator, reward_range="{0, 1}"),
    HardnessWeighting("pshw", pshw_advantage, reward_range="{-1, 1}"),
    Method("stcr", stcr_advantage),
    Method("psr", psr_advantage, reward_range="{0, 1}"),
    Method("nsr", nsr_advantage, reward_range="{0, 1}"),
    Method("w_reinforce", w_reinforce_advantage, reward_range="{0, 1}"),
)
STAGE = Stage("advantage_estimator", ESTIMATORS, READABLE, called_in="hook/rollout.py")
ESTIMATORS["mix"] = Mix("mix", mix, stage=STAGE)  # mixes the others

Estimator = TypeVar("Estimator", bound=Callable[..., Tensor])


def requires_metrics(*metrics: str | ResponseMetric) -> Callable[[Estimator], Estimator]:
    """Declare the metrics that an estimator reads, so that the trainer computes only those.

    ```python
    @requires_metrics("entropy")
    def certain_first(rollout):
        centred = rollout.rewards - rollout.rewards.nanmean(dim=1, keepdim=True)
        return centred / (1 + rollout.metrics["entropy"])
    ```

    Args:
        metrics: built-in metrics ("entropy", "length", "surprisal", "random"), import paths
            `"package.module:function"`, or functions, which are in the rollout's metrics under their `__name__`.
    """

    def declare(estimator: Estimator) -> Estimator:
        estimator.required_metrics = metrics  # type: ignore[attr-defined]
        return estimator

    return declare


if not TYPE_CHECKING:
    __getattr__ = moved(
        __name__,
        {
            "AdvantageEstimator": "canon_trl.method.Method",
            "OnRollout": "canon_trl.method.Method, which reads a rollout's fields from the function's signature",
            "check_options": "Method.with_options",
            "default_options": "Method.all_options",
            "get_estimator": "canon_trl.advantages.ESTIMATORS[name], or canon_trl.method.find(STAGE, spec)",
            "option_parameters": "Method.all_options",
            "required_metrics": "Method.required_metrics",
            "reward_range": "Method.reward_range",
        },
    )

__all__ = [
    "ESTIMATORS",
    "STAGE",
    "a_grae_advantage",
    "canon_advantage",
    "canon_estimator",
    "dr_grpo_advantage",
    "gdpo_advantage",
    "grpo_advantage",
    "grpo_batch_advantage",
    "grpo_s_advantage",
    "grpo_s_estimator",
    "gtpo_advantage",
    "inter_group_advantage",
    "intra_group_advantage",
    "maxrl_advantage",
    "mix",
    "nsr_advantage",
    "opo_advantage",
    "optimal_value",
    "pass_at_k_advantage",
    "pass_at_k_estimator",
    "pshw_advantage",
    "psr_advantage",
    "reinforce_pp_baseline_advantage",
    "requires_metrics",
    "rloo_advantage",
    "split_by_metric",
    "stcr_advantage",
    "w_reinforce_advantage",
]

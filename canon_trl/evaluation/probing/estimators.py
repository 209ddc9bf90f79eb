"""The estimators that a probe compares, and their advantages on the sample."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from canon_trl.advantages import ESTIMATORS, STAGE
from canon_trl.advantages.groups import is_scored
from canon_trl.guards.rollout_checks import checked_advantages, in_range, snapped
from canon_trl.method import Method, find
from canon_trl.metrics import METRICS, RANDOM
from canon_trl.rollout import GATHERED_ON_REQUEST, ResponseMetrics, Rollout

Spec = str | Mapping[str, Any] | Callable[..., Tensor]

EFF_ALPHAS = (0.9, 0.8, 0.6)
# They need options that have no default, or one that suits rewards of 0 and 1.
OPTIONS: dict[str, dict[str, Any]] = {"pass_at_k": {"k": 2}, "pshw": {"low": 0}}
TOKEN_LEVEL = "works on single tokens, but the probe has gradients of whole responses"
COMPOSED = ("canon", "mix")  # CANON is compared for every metric; a mix has no parts by default


def inter(metric: str) -> str:
    """Return the label of CANON-Inter by a metric."""
    return f"canon inter, {metric}"


def intra(metric: str) -> str:
    """Return the label of CANON-Intra by a metric."""
    return f"canon intra, {metric}"


def eff(alpha: float) -> str:
    """Return the label of CANON-Eff."""
    return f"canon eff, alpha {alpha:g}"


def label_of(method: Method) -> str:
    """Return the name of an estimator with the options that are bound."""
    return " ".join([method.name, *(f"{name}={value!r}" for name, value in method.options.items())])


def own_estimators(specs: Iterable[Spec]) -> dict[str, Method]:
    """Find a user's estimators by label: the name, with options if it has any.

    Raises:
        ValueError: an estimator is unknown or does not take an option, or two have the same label.
    """
    found: dict[str, Method] = {}
    for spec in specs:
        method = find(STAGE, spec)
        label = label_of(method)
        if label in found:
            raise ValueError(f"estimators has {label!r} twice; rename one of the functions")
        found[label] = method
    return found


def built_in_estimators(metrics: Mapping[str, Any], num_samples: int) -> dict[str, Method]:
    """Return the estimators of the package by label: CANON for every metric, and all others.

    Args:
        metrics: a metric's name or function by its name in the rollout.
        num_samples: responses per prompt.
    """
    methods = [find(STAGE, name, OPTIONS.get(name)) for name in ESTIMATORS if name not in COMPOSED]
    found = {label_of(method): method for method in methods if method.smallest_group <= num_samples}
    for name, metric in metrics.items():
        for label, mu in ((inter(name), 1.0), (intra(name), 0.0)):
            found[label] = find(STAGE, "canon", {"metric": metric, "mu": mu})
    if metrics.get("length") in ("length", METRICS["length"]):
        for alpha in EFF_ALPHAS:
            found[eff(alpha)] = find(STAGE, "canon", {"metric": "length", "mu": 1.0, "alpha": alpha})
    return found


def compute_advantages(
    estimators: Mapping[str, Method], rollout: Rollout, *, required: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Compute the advantages of all estimators, `(P, G)` by label.

    Args:
        estimators: by label.
        rollout: the sample as one rollout.
        required: labels whose estimators must not be left out.

    Returns:
        The advantages, and why an estimator was left out, by label.

    Raises:
        ValueError: a required estimator cannot be computed.
    """
    advantages: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    for label, method in estimators.items():
        reason = fault_of(method, rollout)
        if reason is None:
            found = checked_advantages(method(rollout), rollout)
            if found.dim() == 2:
                advantages[label] = found
                continue
            reason = TOKEN_LEVEL
        if label in required:
            raise ValueError(f"estimator {label!r} {reason}")
        left_out[label] = reason
    return advantages, left_out


def fault_of(method: Method, rollout: Rollout) -> str | None:
    """Return why an estimator cannot be computed, as the end of a sentence about it."""
    if set(method.reads) & {*GATHERED_ON_REQUEST}:
        return TOKEN_LEVEL
    if method.reward_range is None:
        return None
    wrong = ~in_range(snapped(rollout.rewards, method.reward_range), method.reward_range)
    if not wrong.any():
        return None
    return f"is defined for rewards in {method.reward_range}, but there is a reward of {rollout.rewards[wrong][0]:g}"


def is_control(label: str) -> bool:
    """Whether an estimator splits groups at random."""
    return label in (inter(RANDOM), intra(RANDOM))


def all_required_metrics(estimators: Iterable[Method]) -> list[Any]:
    """Return the metrics that estimators read, as names or functions, each once."""
    return list(dict.fromkeys(metric for method in estimators for metric in method.required_metrics))


def as_rollout(
    rewards_per_func: Tensor,
    rewards: Tensor,
    weights: Tensor,
    names: Sequence[str],
    lengths: Tensor,
    metrics: Mapping[str, Tensor],
) -> Rollout:
    """Return the sample as the first rollout of a run, in float32 as in training."""
    scored = rewards.float()
    return Rollout(
        rewards=scored,
        rewards_per_func=rewards_per_func.float(),
        reward_names=tuple(names),
        reward_weights=weights.float(),
        lengths=lengths.float(),
        metrics=ResponseMetrics(metrics),
        step=0,
        total_steps=1,
        accuracy=scored.nanmean().nan_to_num(0.0).clamp(0, 1),
        valid=is_scored(scored),
        width=int(lengths.max()),
    )

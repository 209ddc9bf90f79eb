"""Check the rewards, metrics and advantages of a rollout."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from canon_trl.guards.failures import SharedFailures
from canon_trl.method import RewardRange
from canon_trl.rollout import Rollout
from canon_trl.rounding import rounding_error


def nearest(rewards: Tensor, reward_range: RewardRange) -> Tensor:
    """Return the nearest values in a range: an interval `"[0, 1]"`, or two values `"{0, 1}"`."""
    low, high = (float(end) for end in reward_range[1:-1].split(","))
    if reward_range.startswith("["):
        return rewards.clamp(low, high)
    return torch.where(rewards > (low + high) / 2, high, low).to(rewards.dtype)


def snapped(rewards: Tensor, reward_range: RewardRange) -> Tensor:
    """Move rewards into the range if they are outside only by the rounding of a sum."""
    inside = nearest(rewards, reward_range)
    return torch.where((rewards - inside).abs() <= rounding_error(torch.ones_like(rewards)), inside, rewards)


def in_range(rewards: Tensor, reward_range: RewardRange) -> Tensor:
    """Whether each reward is in the range or NaN; they must be [`snapped`]."""
    return (rewards == nearest(rewards, reward_range)) | rewards.isnan()


def check_numbers(
    metrics: Mapping[str, Tensor],
    rewards: Tensor,
    accuracy: Tensor | None,
    *,
    reward_ranges: Mapping[str, RewardRange],
    reward_names: Sequence[str],
    accuracy_reward: str,
    failures: SharedFailures,
) -> None:
    """Reject numbers for which a method is not defined, on all ranks.

    Args:
        metrics: by name, `(P, G)` each, over all ranks; infinite if one could not be computed.
        rewards: `(P, G)`, NaN for responses that were not scored.
        accuracy: `(N,)`, if it is needed.
        reward_ranges: the rewards for which a method is defined, by method.
        reward_names: the names of the reward functions behind `rewards`.
        accuracy_reward: the name of the reward function behind `accuracy`.
        failures: the errors of metrics.

    Raises:
        ValueError: a metric is not finite, or a reward or an accuracy is out of range; names the first such response.
        Exception: the error of a metric, on this or another rank.
    """
    checks = {("metric", name): metric.isfinite() for name, metric in metrics.items()}
    if accuracy is not None:
        checks["accuracy", "[0, 1]"] = in_range(accuracy, "[0, 1]")
    for method, reward_range in reward_ranges.items():
        checks["reward", method] = in_range(rewards, reward_range)
    if not checks:
        return
    passed = torch.stack([check.all() for check in checks.values()]).tolist()  # one transfer for all
    for ((kind, name), check), fine in zip(checks.items(), passed, strict=True):
        if fine:
            continue
        index = int((~check.flatten()).nonzero()[0])
        if kind == "metric":
            failures.raise_any()
            value = metrics[name].flatten()[index].item()
            raise ValueError(f"metric {name!r} is {value} for completion {index}; it must be finite")
        if kind == "reward":
            raise ValueError(
                f"{name} is defined for rewards in {reward_ranges[name]}, but the weighted sum of the rewards "
                f"{[*reward_names]} is {rewards.flatten()[index].item()} for completion {index}"
            )
        assert accuracy is not None
        raise ValueError(
            f"the mu schedule reads the accuracy, but reward {accuracy_reward!r} gave {accuracy[index].item()}; "
            "set accuracy_reward to a reward function with values in [0, 1]"
        )


def checked_advantages(advantages: Tensor, rollout: Rollout) -> Tensor:
    """Return the advantages to train on: without a gradient, and 0 for responses without a reward.

    Args:
        advantages: returned by the estimator, `(P, G)`, or `(P, G, T)` with T at least `rollout.width`.
        rollout: the rollout that they were estimated from.

    Raises:
        ValueError: they have another shape.
    """
    shape, expected = tuple(advantages.shape), tuple(rollout.rewards.shape)
    token_level = len(shape) == 3 and shape[:2] == expected and shape[2] >= rollout.width
    if shape != expected and not token_level:
        raise ValueError(
            f"the advantage estimator returned shape {shape}; it must be {expected}, or {(*expected, 'T')} with T "
            f"at least {rollout.width}, the width of the rollout"
        )
    valid = rollout.valid.unsqueeze(-1) if token_level else rollout.valid
    return advantages.detach().float().masked_fill(~valid, 0.0)

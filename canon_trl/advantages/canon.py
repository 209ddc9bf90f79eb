"""CANON, conditional advantage estimation (https://huggingface.co/papers/2509.23962).

CANON does not presume that a metric of a response (its entropy, its length) should be high or low. It splits every
prompt group by the metric and lets the rewards decide. A comparison between the halves shows which direction of the
metric pays; a comparison within a half shows which response is better at a similar metric.

With H the half of a group where the metric is higher, L the half where it is lower and m(.) the mean reward of a half:

    inter-group   r_i - m(the other half)          rewards the better half                  Eq. 3
    intra-group   r_i - m(the response's half)     rewards the better response in a half    Eq. 4
    CANON         mu * inter + (1 - mu) * intra                                             Eq. 5

At mu = 0.5 with even groups CANON is Dr.GRPO (Eq. 7). Equation numbers follow the ICLR 2026 text.

Shapes: P prompts, G responses each. All tensors are `(P, G)`, computed in at least float32 and returned in the dtype
of `rewards`. Inputs are never modified.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from canon_trl.advantages.groups import as_float, group_mean, has_spread, is_scored, zero_invalid
from canon_trl.metrics import ResponseMetric, metric_name
from canon_trl.options import Positive, check_arguments
from canon_trl.paper import Paper
from canon_trl.rollout import Rollout

PAPER = Paper(
    key="chen2025conditional",
    title="Conditional Advantage Estimation for Reinforcement Learning in Large Reasoning Models",
    authors="Guanxu Chen and Yafu Li and Yuxian Jiang and Chen Qian and Qihan Ren and Jingyi Yang and Yu Cheng "
    "and Dongrui Liu and Jing Shao",
    id="2509.23962",
    code="biuboomc/CANON",
)

AlphaGroup = Literal["higher", "lower"]


def split_by_metric(metric: Tensor, valid: Tensor | None = None) -> Tensor:
    """Split each prompt group by the metric: True for responses in the higher half.

    A stable ascending sort puts the first `n // 2` of the `n` valid responses into the lower half. So ties keep the
    order of the responses, and the higher half of an odd group has one response more. Invalid responses and those with
    a NaN metric are in neither half (False).

    Args:
        metric: `(P, G)`, any unit; only its order counts.
        valid: `(P, G)` bool, the responses to split; default all.
    """
    valid = is_scored(metric) if valid is None else valid & is_scored(metric)
    order = as_float(metric).masked_fill(~valid, torch.nan).argsort(dim=-1, stable=True)  # NaN sorts last
    rank = torch.arange(metric.shape[-1], device=metric.device)
    count = valid.sum(dim=-1, keepdim=True)
    return torch.zeros_like(valid).scatter(-1, order, (rank >= count // 2) & (rank < count))


def inter_group_advantage(
    rewards: Tensor,
    higher: Tensor,
    *,
    alpha: Positive = 1.0,
    alpha_group: AlphaGroup = "higher",
    valid: Tensor | None = None,
) -> Tensor:
    """Compare each response with the mean of the other half (Eq. 3).

    alpha multiplies the rewards of `alpha_group` on both sides of the comparison (Eq. 9; Eq. 8 in the README of the
    reference implementation):

        "higher"    i in H: alpha * r_i - m(L)    i in L: r_i - alpha * m(H)
        "lower"     i in H: r_i - alpha * m(L)    i in L: alpha * r_i - m(H)

    With alpha = 1 and equal halves, the advantages of a group sum to zero. With alpha = 1 and equal rewards, they are
    exactly 0; the rounding error of a computed mean would become a whole step of Adam. With any other alpha, equal
    rewards get nonzero advantages, as in the reference implementation.

    Args:
        rewards: `(P, G)`; NaN marks an invalid response.
        higher: `(P, G)` bool from [`split_by_metric`].
        alpha: above 0; a value below 1 favours the half that is not `alpha_group`. With length as the metric and
            `alpha_group="higher"`, that is the shorter half (CANON-Eff).
        alpha_group: the half whose rewards alpha multiplies, `"higher"` or `"lower"`.
        valid: `(P, G)` bool, the responses to compare; default those with a reward.

    Returns:
        `(P, G)`; 0 for invalid responses and if the other half has no valid response, as in a group of one. (The
        reference returns the raw reward of a group of one, which does not occur in training.)

    Raises:
        ValueError: `alpha` is out of bounds, or `alpha_group` is unknown.
    """
    check_arguments(inter_group_advantage, alpha=alpha, alpha_group=alpha_group)
    valid = _valid(rewards, valid)
    higher, lower = valid & higher, valid & ~higher
    tilted = higher if alpha_group == "higher" else lower
    scored = as_float(rewards)
    scaled = torch.where(tilted, alpha * scored, scored)
    other_mean = torch.where(higher, group_mean(scaled, lower), group_mean(scaled, higher))
    comparable = valid & ~other_mean.isnan()
    if alpha == 1:
        comparable &= has_spread(scored, valid)
    return zero_invalid(scaled - other_mean, comparable, like=rewards)


def intra_group_advantage(rewards: Tensor, higher: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Compare each response with the mean of its own half (Eq. 4).

        A_i = r_i - m(the half of i)

    Args:
        rewards: `(P, G)`; NaN marks an invalid response.
        higher: `(P, G)` bool from [`split_by_metric`].
        valid: `(P, G)` bool, the responses to compare; default those with a reward.

    Returns:
        `(P, G)`; exactly 0 for invalid responses and in halves with equal rewards.
    """
    valid = _valid(rewards, valid)
    higher, lower = valid & higher, valid & ~higher
    scored = as_float(rewards)
    own_mean = torch.where(higher, group_mean(scored, higher), group_mean(scored, lower))
    comparable = torch.where(higher, has_spread(scored, higher), has_spread(scored, lower))
    return zero_invalid(scored - own_mean, valid & comparable, like=rewards)


def canon_advantage(
    rewards: Tensor,
    metric: Tensor,
    *,
    mu: float | Tensor = 1.0,
    alpha: Positive = 1.0,
    alpha_group: AlphaGroup = "higher",
    valid: Tensor | None = None,
) -> Tensor:
    """Split by the metric, then mix the inter-group and the intra-group comparison (Eq. 5).

        A = mu * inter + (1 - mu) * intra

    mu = 1 is CANON-Inter and mu = 0 CANON-Intra. mu = 0.5 with an even group and alpha = 1 is exactly Dr.GRPO, since
    the means of the two halves then average to the group mean.

    Args:
        rewards: `(P, G)`; NaN marks an invalid response.
        metric: `(P, G)`; NaN marks an invalid response.
        mu: weight of the inter-group comparison in [0, 1]; a number, or a tensor that broadcasts over the groups.
        alpha, alpha_group: see [`inter_group_advantage`]; they do not change the intra-group comparison.
        valid: `(P, G)` bool, the responses to compare; default those with a reward and a metric.

    Returns:
        `(P, G)`; 0 for invalid responses and in groups with fewer than two valid ones.

    Raises:
        ValueError: the shapes differ, `mu` is a number outside [0, 1], or as for `inter_group_advantage`.
    """
    if rewards.shape != metric.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and metric {tuple(metric.shape)} must have the same shape")
    if not isinstance(mu, Tensor):  # reading a tensor would make the host wait for the device
        check_arguments(canon_estimator, mu=mu)
    valid = _valid(rewards, valid) & is_scored(metric)
    higher = split_by_metric(metric, valid)
    scored = as_float(rewards)
    inter = inter_group_advantage(scored, higher, alpha=alpha, alpha_group=alpha_group, valid=valid)
    intra = intra_group_advantage(scored, higher, valid=valid)
    return zero_invalid(mu * inter + (1 - mu) * intra, valid, like=rewards)


def canon_estimator(
    rollout: Rollout,
    *,
    metric: str | ResponseMetric = "entropy",
    mu: Annotated[float, "[0, 1]"] = 1.0,
    alpha: Positive = 1.0,
    alpha_group: AlphaGroup = "higher",
) -> Tensor:
    """CANON: split a group by a metric; compare a response with the other half and with its own half.

        A = mu * (r_i - m(the other half)) + (1 - mu) * (r_i - m(the response's half))

    It is [`canon_advantage`] on one of the rollout's metrics, given by name or as a function. mu = 1 is CANON-Inter,
    mu = 0 CANON-Intra, and mu = 0.5 Dr.GRPO in even groups. The trainer takes the options from the `canon_*` fields of
    its config, and mu from a schedule; in a mix, the options are given next to the weight.
    """
    values = rollout.metrics[metric_name(metric)]
    return canon_advantage(rollout.rewards, values, mu=mu, alpha=alpha, alpha_group=alpha_group, valid=rollout.valid)


def canon_statistics(rewards: Tensor, metric: Tensor, *, valid: Tensor | None = None) -> dict[str, Tensor]:
    """Statistics of the split over the batch, as 0-d tensors; NaN if no group has both halves.

    Args:
        rewards, metric, valid: as for [`canon_advantage`].

    Returns:
        `reward_gap`: mean over groups of m(H) - m(L). `higher_wins`: share of groups with m(H) > m(L), where a tie
        counts one half, so 0.5 means that the metric says nothing about the reward. `metric_higher`, `metric_lower`:
        mean metric of all responses in the higher and the lower halves, in the metric's unit.
    """
    valid = _valid(rewards, valid) & is_scored(metric)
    higher = split_by_metric(metric, valid)
    lower = valid & ~higher
    scored = as_float(rewards)
    means = torch.cat([group_mean(scored, higher), group_mean(scored, lower)], dim=-1)
    gap = means[..., :1] - means[..., 1:]
    tied = ~has_spread(means, ~means.isnan())
    wins = torch.where(gap.isnan(), torch.nan, (gap.masked_fill(tied, 0.0).sign() + 1) / 2)
    metric = as_float(metric)
    return {
        "reward_gap": gap.nanmean(),
        "higher_wins": wins.nanmean(),
        "metric_higher": metric.masked_fill(~higher, torch.nan).nanmean(),
        "metric_lower": metric.masked_fill(~lower, torch.nan).nanmean(),
    }


def _valid(rewards: Tensor, valid: Tensor | None) -> Tensor:
    return is_scored(rewards) if valid is None else valid & is_scored(rewards)

"""CANON, conditional advantage estimation (https://huggingface.co/papers/2509.23962).

Instead of presuming that a metric of a response (its entropy, its length) should be high or low, split every prompt
group by it and let the rewards decide: comparing the halves shows which direction of the metric pays, comparing
within a half shows which response is better at equal metric.

With H the half of a group where the metric is higher, L the half where it is lower and m(.) the mean reward of a half:

    inter-group   r_i - m(the other half)          for being in the better half       Eq. 3
    intra-group   r_i - m(the own half)            for being the better of a kind     Eq. 4
    CANON         mu * inter + (1 - mu) * intra                                       Eq. 5

At mu = 0.5 with even groups CANON is Dr.GRPO (Eq. 7). Equations are numbered as in the text of ICLR 2026.

Shapes: P prompts, G responses each. Everything is `(P, G)`, computed in at least float32 and returned in the dtype of
`rewards`; inputs are never modified.
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
    """Regroup: True for the responses in the higher half of their prompt group.

    A stable ascending sort by the metric; the lower half is the first `n // 2` of the `n` valid responses, so ties
    keep the order of the responses and an odd group has its extra response in the higher half. Invalid responses, and
    those whose metric is NaN, are in neither half (False).

    Args:
        metric: `(P, G)`, any unit; only its order counts.
        valid: `(P, G)` bool, the responses that take part; default all.
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
    """Compare each response with the mean of the other half: which direction of the metric pays? (Eq. 3)

    alpha multiplies the rewards of `alpha_group` wherever they appear here, tilting the comparison (Eq. 9; Eq. 8 in
    the README of the reference implementation):

        "higher"    i in H: alpha * r_i - m(L)    i in L: r_i - alpha * m(H)
        "lower"     i in H: r_i - alpha * m(L)    i in L: alpha * r_i - m(H)

    With alpha = 1 and equal halves the advantages of a group sum to zero, and those of equal rewards are exactly 0,
    where a computed mean would leave a rounding residue that Adam scales up to a whole step. With alpha other than 1,
    equal rewards get advantages other than zero, as in the reference implementation.

    Args:
        rewards: `(P, G)`; NaN marks an invalid response.
        higher: `(P, G)` bool from [`split_by_metric`].
        alpha: above 0; below 1 favours the half that is not `alpha_group`. With length as the metric and
            `alpha_group="higher"` that is the shorter half (CANON-Eff).
        alpha_group: whose rewards alpha multiplies, `"higher"` or `"lower"`.
        valid: `(P, G)` bool, the responses that take part; default those with a reward.

    Returns:
        `(P, G)`; 0 for invalid responses and where the other half has no valid response, hence also in a group of
        one. (The reference hands back the reward of a group of one, a case that training never meets.)

    Raises:
        ValueError: `alpha` is not positive or `alpha_group` is not one of the two.
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
    """Compare each response with the mean of its own half: which one is better at like metric? (Eq. 4)

        A_i = r_i - m(the half that i is in)

    Args:
        rewards: `(P, G)`; NaN marks an invalid response.
        higher: `(P, G)` bool from [`split_by_metric`].
        valid: `(P, G)` bool, the responses that take part; default those with a reward.

    Returns:
        `(P, G)`; 0 for invalid responses and, exactly, where all rewards of the half are equal.
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
    """Regroup by the metric, then mix inter-group and intra-group comparison (Eq. 5).

        A = mu * inter + (1 - mu) * intra

    mu = 1 is CANON-Inter, mu = 0 CANON-Intra, and mu = 0.5 with an even group and alpha = 1 is exactly Dr.GRPO, since
    the two half means then average to the group mean.

    Args:
        rewards: `(P, G)`; NaN marks an invalid response.
        metric: `(P, G)`; NaN marks an invalid response.
        mu: weight of the inter-group comparison in [0, 1]; a number, or a tensor that broadcasts over the groups.
        alpha, alpha_group: see [`inter_group_advantage`]; the intra-group comparison is never tilted.
        valid: `(P, G)` bool, the responses that take part; default those with a reward and a metric.

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
    """CANON: compare a response with the half of its group where a metric differs, and with its own half.

        A = mu * (r_i - m(the other half)) + (1 - mu) * (r_i - m(the own half))

    [`canon_advantage`] of the metric that the rollout carries by that name, or by the name of that function. mu = 1 is
    CANON-Inter, mu = 0 CANON-Intra, mu = 0.5 Dr.GRPO in even groups. The trainer takes the options from the `canon_*`
    fields of its configuration, with mu from a schedule; within a mix they stand next to the weight.
    """
    values = rollout.metrics[metric_name(metric)]
    return canon_advantage(rollout.rewards, values, mu=mu, alpha=alpha, alpha_group=alpha_group, valid=rollout.valid)


def canon_statistics(rewards: Tensor, metric: Tensor, *, valid: Tensor | None = None) -> dict[str, Tensor]:
    """What the regrouping shows about the batch, as 0-d tensors; NaN where no group has both halves.

    Args:
        rewards, metric, valid: as for [`canon_advantage`].

    Returns:
        `reward_gap`: mean over groups of m(H) - m(L); `higher_wins`: share of groups with m(H) > m(L), a tie counting
        one half, so 0.5 means that the metric tells nothing; `metric_higher`, `metric_lower`: mean metric of all
        responses in the higher and in the lower halves, in the metric's unit.
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

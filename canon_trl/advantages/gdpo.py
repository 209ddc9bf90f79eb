"""GDPO, group reward-decoupled normalization policy optimization (https://huggingface.co/papers/2601.05242).

`rewards_per_func` is `(P, G, F)`: P prompt groups of G responses, each with the rewards of F functions. NaN marks a
response that a function did not score.
"""

import torch
from torch import Tensor

from canon_trl.advantages.groups import as_float, has_spread, is_scored, zero_invalid
from canon_trl.options import Positive
from canon_trl.paper import Paper

PAPER = Paper(
    key="liu2026gdpo",
    title="GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL Optimization",
    authors="Shih-Yang Liu and Xin Dong and Ximing Lu and Shizhe Diao and Peter Belcak and Mingjie Liu and "
    "Min-Hung Chen and Hongxu Yin and Yu-Chiang Frank Wang and Kwang-Ting Cheng and Yejin Choi and Jan Kautz and "
    "Pavlo Molchanov",
    id="2601.05242",
    code="NVlabs/GDPO",
)


def gdpo_advantage(rewards_per_func: Tensor, weights: Tensor, *, eps: Positive = 1e-4) -> Tensor:
    """GDPO: standardise each reward function within the group, sum by weight, and standardise over the batch.

        z_ik = (r_ik - mean(r_k)) / (std(r_k) + eps)      over the group, for each function k
        s_i  = sum_k w_k * z_ik
        A_i  = (s_i - mean(s)) / (std(s) + eps)           over all responses of the batch

    std is the sample standard deviation with divisor n - 1. A function that did not score a response, or scored only
    one response of its group, adds nothing to s. The values equal those of TRL with
    `multi_objective_aggregation="normalize_then_sum"`. As there, a response of a group with equal rewards has s = 0,
    which the mean over the batch may turn into a nonzero advantage.

    Use it with several reward functions on different scales, to count each by its weight. With one reward function it
    is GRPO, standardised twice.

    Args:
        rewards_per_func: `(P, G, F)`; NaN where a function did not score a response.
        weights: `(F,)`.

    Returns:
        `(P, G)` in the dtype of `rewards_per_func`; 0 for responses that no function scored. If no function with a
        weight has two different rewards in a group, all advantages are 0. (TRL then divides rounding errors.)
    """
    scored = as_float(rewards_per_func)
    valid = is_scored(scored)
    standardised = (scored - scored.nanmean(dim=1, keepdim=True)) / (std(scored, dim=1) + eps)
    total = (standardised * weights).nansum(dim=-1).masked_fill(~valid.any(dim=-1), torch.nan)
    advantages = (total - total.nanmean()) / (std(total, dim=(0, 1)) + eps)
    spread = has_spread(scored.mT, valid.mT).squeeze(-1) & (weights != 0)
    return zero_invalid(advantages, is_scored(total) & spread.any(), like=rewards_per_func)


def std(values: Tensor, *, dim: int | tuple[int, ...]) -> Tensor:
    """Sample standard deviation (divisor n - 1) of the scored values; the order of operations is TRL's."""
    variance = ((values - values.nanmean(dim=dim, keepdim=True)) ** 2).nanmean(dim=dim, keepdim=True)
    count = is_scored(values).sum(dim=dim, keepdim=True)
    return (variance * (count / (count - 1))).sqrt()

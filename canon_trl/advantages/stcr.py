"""STCR, suboptimal trajectory complexity regularisation (https://huggingface.co/papers/2506.21655)."""

import math
from typing import Annotated

from torch import Tensor

from canon_trl.advantages.groups import as_float, group_mean, is_scored, zero_invalid
from canon_trl.advantages.grpo import grpo_advantage
from canon_trl.options import check_arguments
from canon_trl.paper import Paper
from canon_trl.rounding import rounding_error

PAPER = Paper(
    key="hong2025apo",
    title="APO: Enhancing Reasoning Ability of MLLMs via Asymmetric Policy Optimization",
    authors="Minjie Hong and Zirun Guo and Yan Xia and Zehan Wang and Ziang Zhang and Tao Jin and Zhou Zhao",
    id="2506.21655",
    code="Indolent-Kawhi/View-R1",
)


def stcr_advantage(rewards: Tensor, lengths: Tensor, *, base: Annotated[float, "[1, 1e6]"] = 1.00001) -> Tensor:
    """GRPO that pushes a wrong response away harder the longer it is than the group's right ones.

        x_i = max(0, L_i - mean length of the right responses)
        w_i = 2 - base^(-x_i)                          for a wrong response, 1 for a right one
        A_i = w_i * (r_i - mean(r)) / (std(r) + 1e-9)

    w is in [1, 2): with the base of the authors' code, 1,000 more tokens give 1.00995 and 70,000 more give 1.5.

    The formula follows the authors' code, where a response is right if trunc(r) = 1. Here it is right if r >= 1, up to
    rounding, which is the same for rewards from 0 to 2 and also suits -1 and 1. If no reward reaches 1, this is GRPO.
    In the code, w multiplies every advantage of a wrong response; here it multiplies only negative ones, because with
    graded rewards a wrong response above the mean would gain from its length.

    Use it if wrong answers ramble, as in responses of many thousand tokens. With short responses the weight is 1 to
    three digits.

    Args:
        rewards: `(P, G)`; NaN marks a response that no reward function could score.
        lengths: `(P, G)` in tokens; the true length, also of a response that is masked as truncated.
        base: how fast the weight grows with the length; 1 is GRPO.

    Returns:
        `(P, G)` in the dtype of `rewards`; 0 for unscored responses and in groups with equal rewards or fewer than two
        scored ones. In a group without a right response, all weights are 1.

    Raises:
        ValueError: `base` is out of its bounds.
    """
    check_arguments(stcr_advantage, base=base)
    scored = as_float(rewards)
    right = is_scored(scored) & (scored + rounding_error(scored) >= 1)
    longer = (as_float(lengths) - group_mean(as_float(lengths), right)).nan_to_num(0.0).clamp(min=0.0)
    advantages = grpo_advantage(scored, eps=1e-9)
    weights = 1 - (-math.log(base) * longer).expm1()
    weights = weights.masked_fill(right | (advantages >= 0), 1.0)
    return zero_invalid(weights * advantages, is_scored(scored), like=rewards)

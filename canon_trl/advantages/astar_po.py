"""A*-PO's optimal value (https://huggingface.co/papers/2505.20686); its loss is `canon_trl.policy_losses.astar_po`."""

from typing import Annotated

import torch
from torch import Tensor

from canon_trl.advantages.groups import as_float, is_scored
from canon_trl.options import check_arguments


def optimal_value(rewards: Tensor, *, beta: Annotated[float, "[0, inf)"]) -> Tensor:
    """Value of a prompt under the best policy near the reference, from rewards that the reference itself earned.

        V* = beta * log mean_i exp(r_i / beta)                      Eq. 3, stage 1

    computed as max(r) + beta * log mean_i exp((r_i - max(r)) / beta), which no reward overflows: the reference,
    without the shift, is infinite from r / beta = 709 on. beta towards 0 tends to the best reward, beta towards
    infinity to the mean; beta = 0 itself stands for the mean by the reference's convention.

    Args:
        rewards: `(P, N)`, N responses of the reference model to each prompt; NaN marks one that was not scored.
        beta: the paper's beta_1, at least 0.

    Returns:
        `(P,)` in at least float32; NaN where no response was scored.

    Raises:
        ValueError: `beta` is negative. (The reference then gives zeros.)
    """
    check_arguments(optimal_value, beta=beta)
    scored = as_float(rewards)
    if beta == 0:
        return scored.nanmean(dim=-1)
    best = scored.masked_fill(~is_scored(scored), -torch.inf).amax(dim=-1, keepdim=True)
    return (best + beta * ((scored - best) / beta).exp().nanmean(dim=-1, keepdim=True).log()).squeeze(-1)

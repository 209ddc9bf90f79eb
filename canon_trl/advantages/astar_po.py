"""A*-PO's optimal value (https://huggingface.co/papers/2505.20686); its loss is `canon_trl.policy_losses.astar_po`."""

from typing import Annotated

import torch
from torch import Tensor

from canon_trl.advantages.groups import as_float, is_scored
from canon_trl.options import check_arguments


def optimal_value(rewards: Tensor, *, beta: Annotated[float, "[0, inf)"]) -> Tensor:
    """Estimate a prompt's value under the best policy near the reference model, from the reference's own rewards.

        V* = beta * log mean_i exp(r_i / beta)                      Eq. 3, stage 1

    It is computed as max(r) + beta * log mean_i exp((r_i - max(r)) / beta), which never overflows. The reference
    implementation has no shift and gives infinity from r / beta = 709 on. V* tends to the best reward as beta tends to
    0, and to the mean as beta tends to infinity. By the reference's convention, beta = 0 means the mean.

    Args:
        rewards: `(P, N)`, N responses of the reference model per prompt; NaN marks an unscored response.
        beta: the paper's beta_1, at least 0.

    Returns:
        `(P,)` in at least float32; NaN where no response was scored.

    Raises:
        ValueError: `beta` is negative or not finite. (The reference gives zeros for a negative one.)
    """
    check_arguments(optimal_value, beta=beta)
    scored = as_float(rewards)
    if beta == 0:
        return scored.nanmean(dim=-1)
    best = scored.masked_fill(~is_scored(scored), -torch.inf).amax(dim=-1, keepdim=True)
    return (best + beta * ((scored - best) / beta).exp().nanmean(dim=-1, keepdim=True).log()).squeeze(-1)

"""Arithmetic within prompt groups, written once: every estimator in this folder is built from these.

A prompt group is one row of a `(P, G)` tensor: P prompts, G responses each. A mask of the same shape says which
responses take part; the others leave every number here unchanged.
"""

import torch
from torch import Tensor

from canon_trl.rounding import rounding_error


def as_float(values: Tensor) -> Tensor:
    """`values` in at least float32, so that means and sorts of bf16, fp16 or integer tensors keep their digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def is_scored(rewards: Tensor) -> Tensor:
    """True where a response has a reward; NaN stands for "no reward function could score it"."""
    return ~rewards.isnan()


def group_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the responses of each group that `mask` selects, `(P, G) -> (P, 1)`; NaN where it selects none."""
    return values.masked_fill(~mask, torch.nan).nanmean(dim=-1, keepdim=True)


def group_std(values: Tensor, mask: Tensor) -> Tensor:
    """Sample standard deviation (divisor n - 1) within each group, `(P, G) -> (P, 1)`; NaN for fewer than two.

    Centred before squaring: the difference of two large squares has no digits left in float32.
    """
    count = mask.sum(dim=-1, keepdim=True)
    variance = group_mean((values - group_mean(values, mask)) ** 2, mask)
    return (variance * (count / (count - 1))).sqrt()


def has_spread(values: Tensor, mask: Tensor) -> Tensor:
    """True for groups with two different values among the responses that `mask` selects, `(P, G) -> (P, 1)`.

    Decided by comparing values: seven rewards of 0.1 have a float32 standard deviation that is not quite zero. Values
    are the same up to the rounding of a sum: rewards are weighted sums, and 0.7 + 0.2 + 0.1 is not quite 1.
    """
    highest = values.masked_fill(~mask, -torch.inf).amax(dim=-1, keepdim=True)
    lowest = values.masked_fill(~mask, torch.inf).amin(dim=-1, keepdim=True)
    return highest - lowest > rounding_error(torch.maximum(highest.abs(), lowest.abs()))


def zero_invalid(advantages: Tensor, valid: Tensor, *, like: Tensor) -> Tensor:
    """`advantages` with 0 where not `valid`, in the dtype of `like` if that is a floating-point one."""
    dtype = like.dtype if like.is_floating_point() else advantages.dtype
    return advantages.masked_fill(~valid, 0.0).to(dtype)

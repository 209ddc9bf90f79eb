"""Arithmetic within prompt groups, which the estimators of this folder and other stages share.

A prompt group is one row of a `(P, G)` tensor: P prompts, G responses each. A mask of the same shape selects
responses; the others affect no result.
"""

import torch
from torch import Tensor

from canon_trl.rounding import rounding_error


def as_float(values: Tensor) -> Tensor:
    """Convert to at least float32, so that means and sorts of bf16, fp16 or integer tensors keep their digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def is_scored(rewards: Tensor) -> Tensor:
    """True where a response has a reward; NaN marks a response that no reward function could score."""
    return ~rewards.isnan()


def group_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average over the selected responses of each group, `(P, G) -> (P, 1)`; NaN where none is selected."""
    return values.masked_fill(~mask, torch.nan).nanmean(dim=-1, keepdim=True)


def group_std(values: Tensor, mask: Tensor) -> Tensor:
    """Sample standard deviation (divisor n - 1) within each group, `(P, G) -> (P, 1)`; NaN for fewer than two.

    It centres before squaring: in float32, the difference of two large squares has no digits left.
    """
    count = mask.sum(dim=-1, keepdim=True)
    variance = group_mean((values - group_mean(values, mask)) ** 2, mask)
    return (variance * (count / (count - 1))).sqrt()


def has_spread(values: Tensor, mask: Tensor) -> Tensor:
    """True for groups whose selected responses have two different values, `(P, G) -> (P, 1)`.

    It compares values, because seven rewards of 0.1 have a float32 standard deviation that is not quite zero. Values
    that differ only by the rounding of a sum are equal: rewards are weighted sums, and 0.7 + 0.2 + 0.1 is not quite 1.
    """
    highest = values.masked_fill(~mask, -torch.inf).amax(dim=-1, keepdim=True)
    lowest = values.masked_fill(~mask, torch.inf).amin(dim=-1, keepdim=True)
    return highest - lowest > rounding_error(torch.maximum(highest.abs(), lowest.abs()))


def zero_invalid(advantages: Tensor, valid: Tensor, *, like: Tensor) -> Tensor:
    """Set `advantages` to 0 where not `valid`; the result has the dtype of `like` if that is a float type."""
    dtype = like.dtype if like.is_floating_point() else advantages.dtype
    return advantages.masked_fill(~valid, 0.0).to(dtype)

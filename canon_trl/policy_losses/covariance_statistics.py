"""What the covariances of a micro-batch look like, whichever tokens a policy loss selects by them."""

import torch
from torch import Tensor

from canon_trl.selection import added, alone, sums_of_largest, together

Statistics = dict[str, Tensor]
TOP_PERCENT = (0.02, 0.2, 2)  # the largest covariances whose mean is logged


def covariance_statistics(covariance: Tensor, selected: Tensor, mask: Tensor) -> Statistics:
    """What the covariances look like, as 0-d tensors (Sec. 4.2, Table 1); a positive mean says that entropy will fall.

    Returns:
        `frac_gated`: share of the valid tokens that are selected; `covariance_mean`; and `covariance_top_0.02_percent`
        and so on, the mean covariance of the largest 0.02%, 0.2% and 2%, at least one token each.
    """
    mask = mask.bool()
    top_sums, totals = together(
        alone,
        sums_of_largest(covariance, mask, top_counts(mask.sum())),
        added(covariance.masked_fill(~mask, 0.0).sum(dtype=torch.float64), selected.sum()),
    )
    return statistics(totals[1], mask.sum(), top_sums, totals)


def statistics(budget: Tensor, count: Tensor, top_sums: Tensor, totals: Tensor) -> Statistics:
    """[`covariance_statistics`] in float32, from numbers of all ranks.

    Args:
        budget: how many tokens are selected if there are so many to select from.
        count: how many are valid.
        top_sums: of the largest covariances, `(3,)`.
        totals: `(2,)`, the sum of all covariances, and how many tokens there are to select from.
    """
    at_least_1 = count.clamp(min=1)
    named = {"frac_gated": totals[1].minimum(budget) / at_least_1, "covariance_mean": totals[0] / at_least_1}
    tops = top_sums / top_counts(count)
    named |= {f"covariance_top_{percent}_percent": top for percent, top in zip(TOP_PERCENT, tops, strict=True)}
    return {name: value.float() for name, value in named.items()}


def at_least_one(fraction: float, count: Tensor) -> Tensor:
    """max(1, floor(fraction * count)), a 0-d tensor like the count: the host need not wait for it."""
    return (count.double() * fraction).floor().clamp(min=1)


def top_counts(count: Tensor) -> Tensor:
    """How many tokens are the largest 0.02%, 0.2% and 2% of so many, at least one each, `(3,)`."""
    return torch.stack([at_least_one(percent / 100, count) for percent in TOP_PERCENT])

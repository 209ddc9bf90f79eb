"""Clip-Cov and KL-Cov over the tokens of all ranks, without gathering them, and statistics of their covariances."""

from dataclasses import dataclass

import torch
from torch import Tensor

from canon_trl.selection import Search, added, alone, draw, largest, means, parallel, sums_of_largest, together

Statistics = dict[str, Tensor]
TOP_PERCENT = (0.02, 0.2, 2)  # the mean of these shares of the largest covariances is logged


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Positions of a rank's tokens in the rollout of all ranks, and the seed of a random choice among them.

    Attributes:
        response: `(B,)`, index of each response in the rollout over all ranks.
        responses: number of responses in the rollout over all ranks.
        width: length of the longest response on any rank.
        seed, step: seed of the random choice.
    """

    response: Tensor
    responses: int
    width: int
    seed: int
    step: int

    def order(self, width: int) -> Tensor:
        """Return the position of each token in sampling order, `(B, width)`."""
        return self.response.unsqueeze(1) * self.width + torch.arange(width, device=self.response.device)


def covariance_over_ranks(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Search[tuple[Tensor, Tensor]]:
    """Return [`token_covariance`] with means over all ranks, and the number of tokens on all ranks, 0-d in float64."""
    mask = mask.bool()
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    log_probs = log_probs.detach().to(dtype)
    advantages = per_token(advantages.detach().to(dtype), mask)
    (mean_advantage, mean_log_prob), count = yield from means([advantages, log_probs], mask)
    covariance = (advantages - mean_advantage) * (log_probs - mean_log_prob)
    return covariance.masked_fill(~mask, 0.0), count


def clip_cov_candidates(
    covariance: Tensor,
    log_ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    bounds: tuple[float, float],
    clip: tuple[float, float],
) -> Tensor:
    """Mark the tokens that Clip-Cov draws from, `(B, T)` bool; see [`clip_cov_mask`]."""
    advantages, policy_ratio = per_token(advantages, mask), log_ratio.detach().exp()
    clipped_low = (policy_ratio < 1 - clip[0]) & (advantages < 0)
    clipped_high = (policy_ratio > 1 + clip[1]) & (advantages > 0)
    return mask & (covariance > bounds[0]) & (covariance < bounds[1]) & ~clipped_low & ~clipped_high


def clip_cov_over_ranks(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    placement: Placement,
    *,
    clip: tuple[float, float],
    ratio: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
) -> Search[tuple[Tensor, Statistics]]:
    """Select this rank's Clip-Cov tokens over all ranks, and compute the statistics of all ranks.

    Unlike in [`clip_cov_mask`], the draw is a function of seed, step, response and position. There are nine rounds of
    communication: one for the means and eight for the draw, which also carry the statistics.

    Args:
        clip: `epsilon_low` and `epsilon_high`.
    """
    mask = mask.bool()
    covariance, count = yield from covariance_over_ranks(log_probs, advantages, mask)
    candidates = clip_cov_candidates(covariance, log_probs - old_log_probs, advantages, mask, (low, high), clip)
    budget = at_least_one(ratio, count)
    response, position = placement.response.unsqueeze(1), torch.arange(mask.shape[1], device=mask.device)
    (selected,), top_sums, totals = yield from parallel(
        draw(candidates, budget.view(1), response, position, seed=placement.seed, step=placement.step),
        sums_of_largest(covariance, mask, top_counts(count)),
        added(covariance.sum(dtype=torch.float64), candidates.sum()),
    )
    return selected, statistics(budget, count, top_sums, totals)


def kl_cov_over_ranks(
    log_probs: Tensor, advantages: Tensor, mask: Tensor, placement: Placement, *, fraction: float = 0.002
) -> Search[tuple[Tensor, Statistics]]:
    """Select this rank's tokens of [`kl_cov_mask`] over all ranks, and compute the statistics of all ranks.

    Rounds of communication: one for the means, four for the covariances (eight in float64), and one for every eight
    bits of `responses * width`, to break ties. They also carry the statistics.
    """
    mask = mask.bool()
    covariance, count = yield from covariance_over_ranks(log_probs, advantages, mask)
    budget = at_least_one(fraction, count)
    candidates = mask & ~covariance.isnan()
    ((selected,), top_sums), totals = yield from parallel(
        largest(
            covariance,
            mask,
            budget.view(1),
            placement.order(mask.shape[1]),
            below=placement.responses * placement.width,
            summed=top_counts(count),
        ),
        added(covariance.sum(dtype=torch.float64), candidates.sum()),
    )
    return selected, statistics(budget, count, top_sums, totals)


def covariance_statistics(covariance: Tensor, selected: Tensor, mask: Tensor) -> Statistics:
    """Summarise the covariances as 0-d tensors (Sec. 4.2, Table 1); with a positive mean, entropy will fall.

    Returns:
        `frac_gated`, the share of the valid tokens that are selected; `covariance_mean`; and
        `covariance_top_0.02_percent` and so on, the mean of the largest 0.02%, 0.2% and 2%, at least one token each.
    """
    mask = mask.bool()
    top_sums, totals = together(
        alone,
        sums_of_largest(covariance, mask, top_counts(mask.sum())),
        added(covariance.masked_fill(~mask, 0.0).sum(dtype=torch.float64), selected.sum()),
    )
    return statistics(totals[1], mask.sum(), top_sums, totals)


def statistics(budget: Tensor, count: Tensor, top_sums: Tensor, totals: Tensor) -> Statistics:
    """Return [`covariance_statistics`] in float32, from numbers of all ranks.

    Args:
        budget: number of tokens to select, if there are as many candidates.
        count: number of valid tokens.
        top_sums: sums of the largest covariances, `(3,)`.
        totals: sum of all covariances and number of candidates, `(2,)`.
    """
    at_least_1 = count.clamp(min=1)
    named = {"frac_gated": totals[1].minimum(budget) / at_least_1, "covariance_mean": totals[0] / at_least_1}
    tops = top_sums / top_counts(count)
    named |= {f"covariance_top_{percent}_percent": top for percent, top in zip(TOP_PERCENT, tops, strict=True)}
    return {name: value.float() for name, value in named.items()}


def at_least_one(fraction: float, count: Tensor) -> Tensor:
    """Return max(1, floor(fraction * count)) as a 0-d tensor, so that the host does not wait for the device."""
    return (count.double() * fraction).floor().clamp(min=1)


def top_counts(count: Tensor) -> Tensor:
    """Return how many tokens make up 0.02%, 0.2% and 2% of `count`, at least one each, `(3,)`."""
    return torch.stack([at_least_one(percent / 100, count) for percent in TOP_PERCENT])


def per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """Expand one advantage per response to `(B, T)`."""
    return advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(mask.shape)

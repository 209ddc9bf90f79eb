"""Clip-Cov and KL-Cov over the tokens of all ranks, which stay where they are, and statistics of their covariances."""

from dataclasses import dataclass

import torch
from torch import Tensor

from canon_trl.selection import Search, added, alone, draw, largest, means, parallel, sums_of_largest, together

Statistics = dict[str, Tensor]
TOP_PERCENT = (0.02, 0.2, 2)  # the largest covariances whose mean is logged


@dataclass(frozen=True, kw_only=True)
class Among:
    """Where the tokens of a rank stand among those of all ranks.

    Attributes:
        response: `(B,)`, the index of each response in the rollout, over all ranks.
        responses: how many those are.
        width: positions of the widest of them, on any rank.
        seed, step: of a random choice.
    """

    response: Tensor
    responses: int
    width: int
    seed: int
    step: int

    def order(self, width: int) -> Tensor:
        """`(B, width)`, the place of each token in sampling order."""
        return self.response.unsqueeze(1) * self.width + torch.arange(width, device=self.response.device)


def covariance_over_ranks(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Search[tuple[Tensor, Tensor]]:
    """[`token_covariance`] with the means over the tokens of all ranks; and how many those are, 0-d in float64."""
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
    """The tokens that Clip-Cov draws from, `(B, T)` bool, see [`clip_cov_mask`]."""
    advantages, policy_ratio = per_token(advantages, mask), log_ratio.detach().exp()
    clipped_low = (policy_ratio < 1 - clip[0]) & (advantages < 0)
    clipped_high = (policy_ratio > 1 + clip[1]) & (advantages > 0)
    return mask & (covariance > bounds[0]) & (covariance < bounds[1]) & ~clipped_low & ~clipped_high


def clip_cov_over_ranks(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    among: Among,
    *,
    clip: tuple[float, float],
    ratio: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
) -> Search[tuple[Tensor, Statistics]]:
    """Clip-Cov over the tokens of all ranks: this rank's tokens that lose their gradient, and everyone's statistics.

    As [`clip_cov_mask`], except that the draw is a function of seed, step, response and position. Nine rounds: one for
    the means and eight for the draw, which bring the statistics along.

    Args:
        among: where the tokens stand among those of all ranks, and which draw this is.
        clip: `epsilon_low` and `epsilon_high`.
    """
    mask = mask.bool()
    covariance, count = yield from covariance_over_ranks(log_probs, advantages, mask)
    candidates = clip_cov_candidates(covariance, log_probs - old_log_probs, advantages, mask, (low, high), clip)
    budget = at_least_one(ratio, count)
    response, position = among.response.unsqueeze(1), torch.arange(mask.shape[1], device=mask.device)
    (selected,), top_sums, totals = yield from parallel(
        draw(candidates, budget.view(1), response, position, seed=among.seed, step=among.step),
        sums_of_largest(covariance, mask, top_counts(count)),
        added(covariance.sum(dtype=torch.float64), candidates.sum()),
    )
    return selected, statistics(budget, count, top_sums, totals)


def kl_cov_over_ranks(
    log_probs: Tensor, advantages: Tensor, mask: Tensor, among: Among, *, fraction: float = 0.002
) -> Search[tuple[Tensor, Statistics]]:
    """[`kl_cov_mask`] over the tokens of all ranks: this rank's tokens that pay, and everyone's statistics.

    Rounds: one for the means, four for the covariances (eight in float64), one for every eight bits of the number of
    tokens that the rollout has room for; the statistics come along.

    Args:
        among: where the tokens stand among those of all ranks.
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
            among.order(mask.shape[1]),
            below=among.responses * among.width,
            summed=top_counts(count),
        ),
        added(covariance.sum(dtype=torch.float64), candidates.sum()),
    )
    return selected, statistics(budget, count, top_sums, totals)


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


def per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """`(B, T)`, also of one advantage per response."""
    return advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(mask.shape)

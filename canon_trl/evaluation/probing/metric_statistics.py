"""What a metric of the responses says about their reward, within prompt groups."""

from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from canon_trl.advantages import split_by_metric
from canon_trl.evaluation.estimates import Estimate, bootstrap_mean
from canon_trl.evaluation.probing.resampling import Floats, estimate_of, ratio, resampled_counts


@dataclass(frozen=True)
class MetricStatistics:
    """How a metric is related to the reward within groups.

    The higher half H and the lower half L of a group are those of CANON, see
    [`~canon_trl.advantages.split_by_metric`]; m(.) is the mean reward of a half. Groups with fewer than two scored
    responses are left out.

    Attributes:
        correlation: of reward and metric, both centred within groups.
        gap: mean of m(H) - m(L).
        higher_wins: share of groups with m(H) > m(L); a tie counts one half.
        ceiling_gap: mean of c(H) - c(L), where c(.) is the expected best reward of as many responses of a half as the
            smaller half has. For rewards of 0 and 1, c is pass@(G/2).
        trap: whether gap and ceiling_gap have opposite signs and neither interval contains 0. The half that earns more
            now is then the one that less often contains a right response.
        explained: share of the variance of rewards within groups that is variance between halves, without the part
            that chance alone would explain; it may be slightly negative. NaN if no half has two responses.
        gap_deviation: standard deviation of the true gap between prompts. If it is larger than the gap, the sign of
            the gap depends on the prompt. NaN as above.
        num_groups: number of groups with both halves.
    """

    correlation: Estimate
    gap: Estimate
    higher_wins: float
    ceiling_gap: Estimate
    trap: bool
    explained: Estimate
    gap_deviation: float
    num_groups: int


def describe_metric(
    rewards: ArrayLike, metric: ArrayLike, *, confidence: float = 0.95, seed: int = 0
) -> MetricStatistics:
    """Compute the statistics of a metric, see [`MetricStatistics`].

    Args:
        rewards: `(P, G)`; NaN for a response that was not scored.
        metric: `(P, G)`.
        confidence: probability of the intervals, over prompts.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the shapes differ, or no group has two scored responses.
    """
    scores, values = np.asarray(rewards, dtype=np.float64), np.asarray(metric, dtype=np.float64)
    if scores.shape != values.shape or scores.ndim != 2:
        raise ValueError(f"rewards {scores.shape} and metric {values.shape} must have the same shape (P, G)")
    valid = ~np.isnan(scores) & ~np.isnan(values)
    kept = valid.sum(axis=1) >= 2
    if not kept.any():
        raise ValueError("no prompt has two responses with a reward and a metric")
    scores, values, valid = scores[kept], values[kept], valid[kept]
    high = split_by_metric(torch.from_numpy(values), torch.from_numpy(valid)).numpy()
    low = valid & ~high

    gaps = _mean(scores, high) - _mean(scores, low)
    gap = bootstrap_mean(gaps, confidence=confidence, seed=seed)
    ceilings = np.array([_ceiling_gap(*each) for each in zip(scores, high, low, strict=True)])
    ceiling_gap = bootstrap_mean(ceilings, confidence=confidence, seed=seed)
    explained, deviation = _explained(scores, high, low, gaps, confidence=confidence, seed=seed)
    tied = np.isclose(gaps, 0, rtol=0, atol=1e-9)
    return MetricStatistics(
        correlation=_correlation(scores, values, valid, confidence=confidence, seed=seed),
        gap=gap,
        higher_wins=float(np.where(tied, 0.5, gaps > 0).mean()),
        ceiling_gap=ceiling_gap,
        trap=sign_of(gap) * sign_of(ceiling_gap) < 0,
        explained=explained,
        gap_deviation=deviation,
        num_groups=len(gaps),
    )


def sign_of(estimate: Estimate) -> int:
    """Return 1 or -1 if the interval lies above or below 0, and 0 if it contains 0 or is unknown."""
    return int(estimate.low > 0) - int(estimate.high < 0)


def best_of(values: ArrayLike, count: int) -> float:
    """Return the expected maximum of `count` of the values, drawn without replacement.

    With the n values in ascending order, sum_j C(j - 1, count - 1) / C(n, count) * x_j. For values of 0 and 1 it is
    pass@count.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    weights = [comb(place, count - 1) / comb(len(ordered), count) for place in range(len(ordered))]
    return float(ordered @ weights)


def _ceiling_gap(rewards: Floats, high: NDArray[np.bool_], low: NDArray[np.bool_]) -> float:
    count = int(min(high.sum(), low.sum()))
    return best_of(rewards[high], count) - best_of(rewards[low], count)


def _mean(values: Floats, mask: NDArray[np.bool_]) -> Floats:
    mean: Floats = np.where(mask, values, 0.0).sum(axis=1) / mask.sum(axis=1)
    return mean


def _variance(values: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Return the sample variance over the selected responses; 0 if one is selected."""
    squares = np.where(mask, values - _mean(values, mask)[:, None], 0.0) ** 2
    variance: Floats = squares.sum(axis=1) / (mask.sum(axis=1) - 1).clip(min=1)
    return variance


def _explained(
    rewards: Floats, high: NDArray[np.bool_], low: NDArray[np.bool_], gaps: Floats, *, confidence: float, seed: int
) -> tuple[Estimate, float]:
    """Return the share of variance between halves and the standard deviation of the true gap."""
    sizes = [half.sum(axis=1) for half in (high, low)]
    measured = (sizes[0] >= 2) & (sizes[1] >= 2)
    if not measured.any():
        return Estimate(np.nan, np.nan, np.nan), np.nan
    variances = [_variance(rewards, half)[measured] for half in (high, low)]
    sizes, gaps = [size[measured] for size in sizes], gaps[measured]
    shares = [size / (sizes[0] + sizes[1]) for size in sizes]
    noise = variances[0] / sizes[0] + variances[1] / sizes[1]
    between = shares[0] * shares[1] * (gaps**2 - noise)
    total = between + shares[0] * variances[0] + shares[1] * variances[1]
    counts = resampled_counts(len(gaps), seed=seed)
    explained = estimate_of(ratio(counts @ between, counts @ total), confidence=confidence)
    spread = gaps.var(ddof=1) - noise.mean() if len(gaps) > 1 else np.nan
    return explained, float(np.sqrt(max(spread, 0.0)) if not np.isnan(spread) else np.nan)


def _correlation(
    rewards: Floats, metric: Floats, valid: NDArray[np.bool_], *, confidence: float, seed: int
) -> Estimate:
    centred = [np.where(valid, each - _mean(each, valid)[:, None], 0.0) for each in (rewards, metric)]
    products = (centred[0] * centred[1]).sum(axis=1)
    squares = [(each**2).sum(axis=1) for each in centred]

    counts = resampled_counts(len(products), seed=seed)
    correlation = ratio(counts @ products, np.sqrt((counts @ squares[0]) * (counts @ squares[1])))
    return estimate_of(correlation, confidence=confidence)

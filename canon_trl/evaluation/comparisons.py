"""The difference between two methods run with the same seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from canon_trl.evaluation.estimates import ROUNDING


@dataclass(frozen=True)
class Difference:
    """A paired difference with its confidence interval.

    Attributes:
        mean: mean of the differences.
        low, high: the interval; NaN if there is only one pair, or if the differences have no spread.
        pairs: number of pairs.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def is_noise(self) -> bool:
        """Whether the interval contains 0 or is unknown."""
        return not (self.low > 0 or self.high < 0)


def paired_difference(
    values: Sequence[float],
    baseline: Sequence[float],
    *,
    comparisons: int = 1,
    level: float = 0.95,
    resolution: float = 0.0,
) -> Difference:
    """Return the mean of `values - baseline` over seeds with Student's interval, corrected for multiple comparisons.

    The interval is mean ± t * s / sqrt(n), with s the standard deviation of the n differences and t the quantile
    1 - (1 - level) / (2 * comparisons) of Student's distribution with n - 1 degrees of freedom. Bonferroni's division
    by the number of comparisons makes `level` the probability that all intervals of a report hold at once, however the
    methods depend on each other. The differences between runs are assumed to be approximately normal.

    If all differences are the same up to rounding, or lie within one step of a discrete measure, such as a share of n
    responses, there is no interval, however many there are: the resolution hides the spread, and an interval would
    claim a certainty that was not measured.

    Args:
        values: one per seed.
        baseline: for the same seeds in the same order.
        comparisons: number of intervals that are considered together.
        level: probability that all of them hold.
        resolution: the step of the measure, such as 1 / n; 0 if it is continuous.

    Raises:
        ValueError: the lengths differ or are 0, `comparisons` is below 1, `resolution` is negative, or `level` is not
            between 0 and 1.
    """
    ours, theirs = np.asarray(values, dtype=float), np.asarray(baseline, dtype=float)
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(f"values {ours.shape} and baseline {theirs.shape} must be lists of one length, at least 1")
    if comparisons < 1:
        raise ValueError(f"comparisons={comparisons!r} must be at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} must lie between 0 and 1")
    if not resolution >= 0:
        raise ValueError(f"resolution={resolution!r} must be at least 0")
    differences = ours - theirs
    mean, pairs = differences.mean(), len(differences)
    scale = max(abs(ours).max(), abs(theirs).max())
    within_a_step = np.ptp(differences) <= resolution + ROUNDING * scale
    if pairs < 2 or within_a_step:
        return Difference(float(mean), float("nan"), float("nan"), pairs)
    quantile = stats.t.ppf(1 - (1 - level) / (2 * comparisons), pairs - 1)
    half = quantile * differences.std(ddof=1) / np.sqrt(pairs)
    return Difference(float(mean), float(mean - half), float(mean + half), pairs)

"""How far two methods are apart when each was run with the same seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from canon_trl.evaluation.estimates import all_equal


@dataclass(frozen=True)
class Difference:
    """A paired difference with its confidence interval.

    Attributes:
        mean: of the differences.
        low, high: the interval; NaN where the pairs say nothing about spread: there is one, or all differ by the same.
        pairs: how many.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def is_noise(self) -> bool:
        """Whether the interval has 0 in it, or is not known."""
        return not (self.low > 0 or self.high < 0)


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], *, comparisons: int = 1, level: float = 0.95
) -> Difference:
    """Mean of `values - baseline` over seeds with Student's interval, corrected for the number of comparisons.

    The interval is mean ± t * s / sqrt(n), with s the standard deviation of the n differences and t the quantile
    1 - (1 - level) / (2 * comparisons) of Student's distribution with n - 1 degrees of freedom. Bonferroni's division
    by the number of comparisons makes `level` the probability that all intervals of a report hold at once, however the
    methods depend on each other. Differences between runs are assumed to be about normal.

    Differences that are all the same, but for the rounding of floats, have no interval, however many they are. Normal
    ones never are; these are of a measure in steps, such as a share of n responses, and their spread is below what a
    step shows. How far below, no number of them says, so s = 0 would call certain what was not measured.

    Args:
        values: one a seed.
        baseline: of the same seeds in the same order.
        comparisons: how many intervals are looked at together.
        level: of all of them together.

    Raises:
        ValueError: the lengths differ or are 0, `comparisons` is below 1 or `level` not between 0 and 1.
    """
    ours, theirs = np.asarray(values, dtype=float), np.asarray(baseline, dtype=float)
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(f"values {ours.shape} and baseline {theirs.shape} must be lists of one length, not 0")
    if comparisons < 1:
        raise ValueError(f"comparisons={comparisons!r} must be at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} must lie between 0 and 1")
    differences = ours - theirs
    mean, pairs = differences.mean(), len(differences)
    if pairs < 2 or all_equal(differences, scale=max(abs(ours).max(), abs(theirs).max())):
        return Difference(float(mean), float("nan"), float("nan"), pairs)
    quantile = stats.t.ppf(1 - (1 - level) / (2 * comparisons), pairs - 1)
    half = quantile * differences.std(ddof=1) / np.sqrt(pairs)
    return Difference(float(mean), float(mean - half), float(mean + half), pairs)

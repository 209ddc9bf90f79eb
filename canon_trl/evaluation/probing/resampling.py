"""Bootstrap over prompts, and unbiased means over pairs of prompts."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from canon_trl.evaluation.estimates import Estimate, all_equal

Floats = NDArray[np.float64]


def resampled_counts(num_prompts: int, draws: int, seed: int) -> Floats:
    """Count how often each bootstrap draw contains each prompt, `(draws, P)`; every row adds up to P."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_prompts, [1 / num_prompts] * num_prompts, size=draws).astype(np.float64)


def pair_mean(products: Floats, counts: Floats) -> Floats:
    """Average over pairs of different prompts, `(draws, P) -> (draws,)`.

        sum_(p != q) n_p n_q M_pq / sum_(p != q) n_p n_q

    With M_pq = a_p . b_q, where prompt p gives a_p and b_p, this is an unbiased estimate of E[a] . E[b]. The products
    of a prompt with itself are left out, since they also contain the noise of that prompt's responses.

    Args:
        products: M, `(P, P)`.
        counts: n, the number of times that each draw contains each prompt. NaN for a draw with a single prompt.
    """
    squares = counts**2
    total = ((counts @ products) * counts).sum(axis=1) - squares @ np.diag(products)
    return ratio(total, counts.sum(axis=1) ** 2 - squares.sum(axis=1))


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; NaN where the denominator is not positive."""
    result: Floats = np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
    return result


def bootstrapped(
    statistic: Callable[[Floats], Floats], num_prompts: int, *, confidence: float, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Return a statistic with its percentile interval over bootstrap samples of prompts.

    Args:
        statistic: maps counts of prompts `(draws, P)` to values `(draws,)`; NaN where the statistic is undefined.
        num_prompts: P.
        confidence: probability of the interval.
        draws: number of bootstrap samples.
        seed: seed of the samples.

    Returns:
        The bounds are NaN if a tenth of the draws or more are undefined, or if all draws are equal.
    """
    value = float(statistic(np.ones((1, num_prompts)))[0])
    values = statistic(resampled_counts(num_prompts, draws, seed))
    known = values[np.isfinite(values)]
    if np.isnan(value) or len(known) <= 0.9 * draws or all_equal(known, scale=abs(known).max()):
        return Estimate(value, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))

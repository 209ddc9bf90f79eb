"""Bootstrap over prompts, and unbiased means over pairs of prompts."""

import numpy as np
from numpy.typing import NDArray

from canon_trl.evaluation.estimates import Estimate, all_equal

Floats = NDArray[np.float64]


def resampled_counts(num_prompts: int, *, draws: int = 1000, seed: int = 0) -> Floats:
    """Count how often each prompt is in the sample, once, and in each bootstrap draw, `(1 + draws, P)`.

    The first row is the sample itself, all ones. Every row adds up to P.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_prompts, [1 / num_prompts] * num_prompts, size=draws)
    return np.concatenate([np.ones((1, num_prompts)), drawn])


def pair_mean(products: Floats, counts: Floats) -> Floats:
    """Average over pairs of different prompts, `(draws, P) -> (draws,)`.

        sum_(p != q) n_p n_q M_pq / sum_(p != q) n_p n_q

    With M_pq = a_p . b_q, where prompt p gives a_p and b_p, this is an unbiased estimate of E[a] . E[b]. The products
    of a prompt with itself are left out, since they also contain the noise of that prompt's responses.

    Args:
        products: M, `(P, P)`.
        counts: n, see [`resampled_counts`].

    Returns:
        `(draws,)`; NaN for a draw with a single prompt.
    """
    squares = counts**2
    total = ((counts @ products) * counts).sum(axis=1) - squares @ np.diag(products)
    return ratio(total, counts.sum(axis=1) ** 2 - squares.sum(axis=1))


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; NaN where the denominator is not positive."""
    result: Floats = np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
    return result


def estimate_of(values: Floats, *, confidence: float) -> Estimate:
    """Return a statistic with its percentile interval.

    Args:
        values: of the sample and of the bootstrap draws, in the order of [`resampled_counts`]; NaN where undefined.
        confidence: probability of the interval.

    Returns:
        The bounds are NaN if a tenth of the draws or more are undefined, or if all draws are equal.
    """
    value, draws = float(values[0]), values[1:]
    known = draws[np.isfinite(draws)]
    if np.isnan(value) or len(known) <= 0.9 * len(draws) or all_equal(known, scale=abs(known).max()):
        return Estimate(value, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))

"""Unbiased estimates from n responses per prompt, with confidence intervals over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ROUNDING = 1e-12  # bound on the relative rounding error in float64, with room for long sums


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """Estimate the probability that at least one of k responses to a prompt is right, from n responses with c right.

    pass@k = 1 - C(n - c, k) / C(n, k), the share of the k-subsets of the n responses that contain a right one. It is
    unbiased for every n >= k (https://huggingface.co/papers/2107.03374, Eq. 1); 1 - (1 - c/n)^k is not.

    Args:
        num_samples: n, one number for all prompts or one per prompt.
        num_correct: c, one per prompt, in any shape.
        k: from 1 to the smallest n.

    Returns:
        float64 in [0, 1] in the shape of the counts. It is c/n for k = 1; for k = n it is 1 if c > 0 and 0 otherwise.

    Raises:
        ValueError: a count is not a whole number, c is outside [0, n], or k is outside [1, n].
    """
    samples, correct = _counts(num_samples, num_correct)
    smallest = samples.min(initial=np.inf)
    if not 1 <= k <= smallest or k != int(k):
        raise ValueError(f"k={k!r} must be a whole number from 1 to the smallest num_samples, {smallest:.0f}")
    pairs, places = np.unique(np.stack([samples.ravel(), correct.ravel()]), axis=1, return_inverse=True)
    # C(n - c, k) / C(n, k) is the product of 1 - k/i over i from n - c + 1 to n, or 0 if a factor is not positive. No
    # factor is large, so nothing overflows or cancels.
    i = pairs[0, :, None] - np.arange(pairs[1].max(initial=0))
    factors = np.where(i > pairs[0, :, None] - pairs[1, :, None], (i - k).clip(min=0) / i.clip(min=1), 1.0)
    pass_at: NDArray[np.float64] = (1 - factors.prod(axis=1))[places].reshape(samples.shape)
    return pass_at


def avg_at_k(num_samples: ArrayLike, num_correct: ArrayLike) -> NDArray[np.float64]:
    """Return the share of a prompt's n responses that are right, c/n: avg@n, and the unbiased estimate of pass@1.

    Args:
        num_samples: n, one number for all prompts or one per prompt.
        num_correct: c, one per prompt, in any shape.

    Returns:
        float64 in [0, 1] in the shape of the counts.

    Raises:
        ValueError: a count is not a whole number, n is not positive, or c is outside [0, n].
    """
    samples, correct = _counts(num_samples, num_correct)
    return correct / samples


def majority_at_k(
    answers: Sequence[Sequence[str | None]],
    correct: Sequence[ArrayLike] | NDArray[np.bool_],
    k: int,
    *,
    num_subsets: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Estimate the accuracy of the most common answer among k of the n responses to a prompt.

    Two answers are the same if their strings are equal. If several answers tie, each wins with the same probability. A
    response without an answer does not vote; if no response has an answer, the accuracy is 0. If responses with the
    same answer were judged differently, the answer counts with the share of them that were judged right.

    For k = n it is the exact result of a single vote. For k < n it is the mean over random k-subsets of the n
    responses, drawn from the seed, with a standard error of at most 0.5 / sqrt(num_subsets) per prompt from the
    drawing. In both cases it estimates the accuracy of a vote among k responses without bias.

    Args:
        answers: n per prompt, `None` for no answer.
        correct: n booleans per prompt.
        k: number of voters, from 1 to the smallest n.
        num_subsets: number of random subsets per prompt.
        seed: seed of the subsets.

    Returns:
        float64 in [0, 1], one per prompt.

    Raises:
        ValueError: `answers` and `correct` differ in their number of prompts or responses, or k is outside [1, n].
    """
    if num_subsets < 1:
        raise ValueError(f"num_subsets={num_subsets!r} must be at least 1")
    if len(answers) != len(correct):
        raise ValueError(f"answers has {len(answers)} prompts and correct has {len(correct)}; they must match")
    rng = np.random.default_rng(seed)
    return np.array(
        [
            _majority(given, np.asarray(right, dtype=np.float64), k, num_subsets, rng)
            for given, right in zip(answers, correct, strict=True)
        ],
        dtype=np.float64,
    )


def _majority(
    answers: Sequence[str | None], correct: NDArray[np.float64], k: int, num_subsets: int, rng: np.random.Generator
) -> float:
    if correct.shape != (len(answers),):
        raise ValueError(f"a prompt has {len(answers)} answers and correct of shape {correct.shape}; they must match")
    if not 1 <= k <= len(answers):
        raise ValueError(f"k={k!r} must be a whole number from 1 to the number of responses, {len(answers)}")
    places: dict[str, list[int]] = {}
    for place, answer in enumerate(answers):
        if answer is not None:
            places.setdefault(answer, []).append(place)
    if not places:
        return 0.0
    counts = [len(same) for same in places.values()]
    silent = len(answers) - sum(counts)
    # The counts of the answers in a random subset follow the multivariate hypergeometric distribution.
    subsets = (
        [[*counts, silent]]
        if k == len(answers)
        else rng.multivariate_hypergeometric([*counts, silent], k, size=num_subsets)
    )
    votes = np.asarray(subsets)[:, :-1]
    most = votes.max(axis=1, keepdims=True)
    winners = (votes == most) & (most > 0)
    right = np.array([correct[same].mean() for same in places.values()])
    return float((winners @ right / winners.sum(axis=1).clip(min=1)).mean())


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its confidence interval; the bounds are NaN if the values have no spread."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    method: Literal["BCa", "percentile", "basic"] = "BCa",
    num_resamples: int = 9999,
    seed: int = 0,
) -> Estimate:
    """Return the mean over prompts with a bootstrap interval: its variation over other prompts of the same kind.

    It draws prompts with replacement (`scipy.stats.bootstrap`). A prompt's value includes the randomness of its
    responses, so the interval covers both. It assumes that prompts are independent. For a fixed benchmark that is not
    a sample of similar prompts, the interval is wider than needed.

    With one prompt, or with the same value for all prompts, every resample is the same and the bounds are NaN. For
    shares that are all 0 or all 1, [`mean_share`] has an exact interval.

    Args:
        values: one per prompt, finite.
        confidence: probability of the interval, in (0, 1).
        method: kind of interval, as `scipy.stats.bootstrap` names it.
        num_resamples: number of resamples.
        seed: seed of the resamples.

    Raises:
        ValueError: there is no value, a value is not finite, or `confidence` is outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"values of shape {values.shape} must be finite numbers, one per prompt and at least one")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} must lie in (0, 1)")
    mean = float(values.mean())
    if all_equal(values, scale=abs(values).max()):
        return Estimate(mean, np.nan, np.nan)
    interval = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        method=method,
        n_resamples=num_resamples,
        batch=max(1, 2_000_000 // len(values)),  # 16 MB of resampled values at a time
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


def mean_share(shares: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """Return [`bootstrap_mean`] of shares, or an exact interval if all P shares are 0 or all are 1.

    Such shares have no spread to resample, but they bound the mean m over all prompts of the kind. For shares in
    [0, 1] of any distribution, the probability that all P are 1 is at most m^P, so the interval is from
    ((1 - confidence) / 2)^(1 / P) to 1; if all are 0, it is the mirror image. It is Clopper and Pearson's interval for
    P successes in P trials. Equal shares between 0 and 1 have no such bound, so their interval is NaN.

    Args:
        shares: one per prompt, in [0, 1].
        confidence: probability of the interval, in (0, 1).

    Raises:
        ValueError: as for `bootstrap_mean`; or a share is outside [0, 1].
    """
    shares = np.asarray(shares, dtype=np.float64)
    estimate = bootstrap_mean(shares, confidence=confidence)
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"shares from {shares.min()} to {shares.max()} must lie in [0, 1]")
    furthest = ((1 - confidence) / 2) ** (1 / len(shares))
    if (shares == 1).all():
        return Estimate(1.0, furthest, 1.0)
    if (shares == 0).all():
        return Estimate(0.0, 0.0, 1 - furthest)
    return estimate


def all_equal(values: NDArray[np.float64], *, scale: float) -> bool:
    """Whether all values are the same up to the rounding of floats of size `scale`."""
    return bool(np.ptp(values) <= ROUNDING * scale)


def _counts(num_samples: ArrayLike, num_correct: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    samples, correct = np.broadcast_arrays(
        np.asarray(num_samples, dtype=np.float64), np.asarray(num_correct, dtype=np.float64)
    )
    if not (samples == np.floor(samples)).all() or samples.min(initial=1) < 1:
        raise ValueError(f"num_samples={num_samples!r} must be whole numbers of at least 1")
    if not ((correct == np.floor(correct)) & (correct >= 0) & (correct <= samples)).all():
        raise ValueError(f"num_correct={num_correct!r} must be whole numbers from 0 to num_samples={num_samples!r}")
    return samples, correct

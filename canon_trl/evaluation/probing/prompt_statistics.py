"""How many of the prompts a group of responses can learn from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from canon_trl.advantages.groups import has_spread, is_scored
from canon_trl.evaluation.estimates import Estimate, mean_share, pass_at_k
from canon_trl.evaluation.responses import is_right

BINS = 10


@dataclass(frozen=True)
class PromptStatistics:
    """The prompts of a sample, by how often they are solved.

    Attributes:
        num_prompts: prompts with a scored response.
        num_samples: responses per prompt, G.
        unscored_prompts: prompts without a scored response; the other numbers leave them out.
        reward: mean reward of the scored responses.
        accuracy: mean share of right responses, as an estimate over prompts.
        with_spread: prompts whose G rewards differ; the others give no gradient.
        always_right: prompts with G right responses.
        never_right: prompts without a right response.
        groups_with_spread: by the size of the group, the expected share of groups whose responses are partly right and
            partly wrong.
        histogram: number of prompts by accuracy, in ten bins from 0 to 1; the last includes 1.
        pass_at_k: by k.
        truncated: share of all responses.
        length: mean number of tokens.
    """

    num_prompts: int
    num_samples: int
    unscored_prompts: int
    reward: float
    accuracy: Estimate
    with_spread: int
    always_right: int
    never_right: int
    groups_with_spread: dict[int, float]
    histogram: list[int]
    pass_at_k: dict[int, Estimate]
    truncated: float
    length: float


def describe_prompts(
    rewards: ArrayLike,
    lengths: ArrayLike,
    truncated: ArrayLike,
    *,
    threshold: float = 1.0,
    group_sizes: Sequence[int] | None = None,
    confidence: float = 0.95,
) -> PromptStatistics:
    """Compute the statistics of the prompts, see [`PromptStatistics`].

    Args:
        rewards: `(P, G)`; NaN for a response that was not scored, which is not right.
        lengths: `(P, G)`, in tokens.
        truncated: `(P, G)`, whether the response was cut off at the maximum length.
        threshold: minimum reward of a right response.
        group_sizes: sizes of groups for `groups_with_spread`, from 2 to G; default the powers of 2.
        confidence: probability of the intervals.

    Raises:
        ValueError: no prompt has a scored response.
    """
    given = np.asarray(rewards, dtype=np.float64)
    scored = ~np.isnan(given).all(axis=1)
    if not scored.any():
        raise ValueError("no prompt has a scored response")
    kept, size = given[scored], given.shape[1]
    right = is_right(kept, threshold).sum(axis=1)
    powers = [2**power for power in range(size.bit_length())]
    sizes = [k for k in powers if k > 1] if group_sizes is None else group_sizes
    tensor = torch.from_numpy(kept)
    return PromptStatistics(
        num_prompts=len(kept),
        num_samples=size,
        unscored_prompts=int((~scored).sum()),
        reward=float(np.nanmean(kept)),
        accuracy=mean_share(right / size, confidence=confidence),
        with_spread=int(has_spread(tensor, is_scored(tensor)).sum()),
        always_right=int((right == size).sum()),
        never_right=int((right == 0).sum()),
        groups_with_spread={k: share_with_spread(size, right, k) for k in sizes},
        histogram=np.histogram(right / size, bins=BINS, range=(0, 1))[0].tolist(),
        pass_at_k={k: mean_share(pass_at_k(size, right, k), confidence=confidence) for k in sorted({*powers, size})},
        truncated=float(np.asarray(truncated).mean()),
        length=float(np.asarray(lengths, dtype=np.float64).mean()),
    )


def share_with_spread(num_samples: int, num_right: ArrayLike, group_size: int) -> float:
    """Return the expected share of groups whose responses are neither all right nor all wrong.

    With c of n responses right, 1 - C(c, g) / C(n, g) - C(n - c, g) / C(n, g) for a group of g.
    """
    right = np.asarray(num_right)
    some_right = pass_at_k(num_samples, right, group_size)
    some_wrong = pass_at_k(num_samples, num_samples - right, group_size)
    return float((some_right + some_wrong - 1).mean())

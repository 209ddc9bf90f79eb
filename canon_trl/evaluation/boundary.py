"""The capability boundary of two models: which prompts each of them solves (https://huggingface.co/papers/2508.07534)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class CapabilityBoundary:
    """How the set of solved prompts changed from one model to another, as indices of prompts in ascending order.

    Attributes:
        gained: prompts that only the second model solves.
        lost: prompts that only the first model solves.
        kept: prompts that both solve.
        unsolvable: prompts that neither solves.
        k: number of responses per prompt.
    """

    gained: NDArray[np.intp]
    lost: NDArray[np.intp]
    kept: NDArray[np.intp]
    unsolvable: NDArray[np.intp]
    k: int


def capability_boundary(before: ArrayLike, after: ArrayLike) -> CapabilityBoundary:
    """Compare which prompts two models solve with k responses, such as a model before and after training.

    A prompt is solved if at least one of its k responses is right; the others are the k-rollout unsolvable problems of
    the paper. Training moves this boundary rather than extending it: in the paper fine-tuning and reinforcement
    learning both gain some prompts and lose others, which equal values of pass@k hide.

    The sets depend on chance. A prompt with one right response in k on average is missed by about a third of all draws
    of k responses, so prompts change sides even between two samples of one model. Use a large k, the same for both.

    Args:
        before, after: `(P, k)`, whether a response of the first and of the second model is right, for the same prompts
            in the same order, such as `Judged.correct` or the column `correct` of
            the records of an evaluation.

    Raises:
        ValueError: the shapes differ or are not `(P, k)`, or a value is not a truth value.
    """
    first, second = _truths(before, "before"), _truths(after, "after")
    if first.shape != second.shape:
        raise ValueError(
            f"before has shape {first.shape} and after {second.shape}; both need the same prompts and the same k, "
            "since more responses solve more prompts"
        )
    old, new = first.any(axis=1), second.any(axis=1)
    sets = {"gained": ~old & new, "lost": old & ~new, "kept": old & new, "unsolvable": ~old & ~new}
    return CapabilityBoundary(**{name: np.flatnonzero(chosen) for name, chosen in sets.items()}, k=first.shape[1])


def _truths(given: ArrayLike, name: str) -> NDArray[np.bool_]:
    try:
        values = np.asarray(given, dtype=np.float64)
    except ValueError:
        raise ValueError(f"{name} has prompts with different numbers of responses; all need the same") from None
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"{name} has shape {values.shape}; it must be (P, k) with at least one response per prompt")
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"{name} has values other than 0 and 1; give whether each response is right, not its reward")
    truths: NDArray[np.bool_] = values == 1
    return truths

"""Schedules of mu, the weight of CANON's inter-group comparison (https://huggingface.co/papers/2509.23962).

A schedule is a function `(step, total_steps, accuracy, **options) -> mu` of the rollout's index (from 0), the number
of rollouts in the run and the batch's accuracy in [0, 1]. It has no state, so a resumed run has nothing to restore.

The reference implementation counts rollouts from 1, so its cosine curve is one step ahead.
"""

import math
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def constant(step: int, total_steps: int, accuracy: float | Tensor, *, mu: float = 1.0) -> float:
    """Return the same mu throughout."""
    return mu


def inter_to_intra(step: int, total_steps: int, accuracy: Number) -> Number:
    """First-Inter-Later-Intra: mu = 1 - accuracy, so the inter-group comparison fades as the model improves."""
    return 1 - accuracy


def intra_to_inter(step: int, total_steps: int, accuracy: Number) -> Number:
    """First-Intra-Later-Inter: mu = accuracy, so the inter-group comparison grows as the model improves."""
    return accuracy


def cosine_inter_to_intra(
    step: int,
    total_steps: int,
    accuracy: float | Tensor,
    *,
    warmup_ratio: float = 0.2,
    cycles: int = 3,
    low: float = 0.4,
    high: float = 1.0,
) -> float:
    """Cosine-First-Inter-Later-Intra: mu is [`cosine_restarts`], falling from `high` to `low` in every cycle."""
    warmup_steps = round(warmup_ratio * total_steps)
    return cosine_restarts(step, total_steps=total_steps, warmup_steps=warmup_steps, cycles=cycles, low=low, high=high)


def cosine_intra_to_inter(
    step: int,
    total_steps: int,
    accuracy: float | Tensor,
    *,
    warmup_ratio: float = 0.2,
    cycles: int = 3,
    low: float = 0.0,
    high: float = 0.6,
) -> float:
    """Cosine-First-Intra-Later-Inter: the intra-group weight 1 - mu is [`cosine_restarts`], falling in every cycle."""
    return 1 - cosine_inter_to_intra(
        step, total_steps, accuracy, warmup_ratio=warmup_ratio, cycles=cycles, low=low, high=high
    )


def cosine_restarts(step: int, *, total_steps: int, warmup_steps: int, cycles: int, low: float, high: float) -> float:
    """Warm up linearly to `high`, then repeat cosine cycles from `high` towards `low`.

        step < warmup    high * (step + 1) / warmup
        otherwise        low + (high - low) * (1 + cos(pi * phase)) / 2
                         phase = ((step - warmup) mod c) / c
                         c = (total - warmup) // cycles, the steps per cycle

    As in the reference implementation, the warm-up starts above 0 and reaches `high` one step early, a cycle comes
    close to `low` but does not reach it, and cycles continue beyond `total_steps`.

    Raises:
        ValueError: a cycle would be shorter than one step.
    """
    cycle_length = (total_steps - warmup_steps) // cycles
    if cycle_length < 1:
        raise ValueError(
            f"cycles={cycles} must be at most {total_steps - warmup_steps}, the steps of total_steps={total_steps} "
            f"after warmup_steps={warmup_steps}"
        )
    if step < warmup_steps:
        return high * (step + 1) / warmup_steps
    phase = (step - warmup_steps) % cycle_length / cycle_length
    return low + (high - low) * (1 + math.cos(math.pi * phase)) / 2


SCHEDULES: dict[str, Callable[..., float | Tensor]] = {
    "constant": constant,
    "inter_to_intra": inter_to_intra,
    "intra_to_inter": intra_to_inter,
    "cosine_inter_to_intra": cosine_inter_to_intra,
    "cosine_intra_to_inter": cosine_intra_to_inter,
}

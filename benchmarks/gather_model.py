"""Model what canon_trl sends between ranks in addition to TRL, and how long that takes; fit it to measurements."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FLOAT, LONG = 4, 8  # bytes
NUMBERS_PER_RESPONSE = 2  # the width of its rank's rollout and its length; each metric adds one
NUMBERS_PER_TOKEN = 4  # log-probability, old log-probability, advantage, and whether it is trained on
SUM = 8  # bytes of a number summed over the ranks, a float64
BINS, TOPS = 256, 3  # counts per digit; number of top shares of the covariances whose mean is logged


def rollout_bytes(responses: int, metrics: int) -> int:
    """Bytes that a rank sends per rollout: a few numbers per response."""
    return responses * (NUMBERS_PER_RESPONSE + metrics) * FLOAT


def gathered_choice_bytes(responses: int, tokens: int) -> int:
    """Bytes that a rank sent for a choice by gathering: a few numbers per token, and the index of each response."""
    return responses * (NUMBERS_PER_TOKEN * tokens * FLOAT + LONG)


def choice_rounds(name: str, places: int) -> list[int]:
    """Bytes that a rank contributes to each all-reduce of one choice of tokens, statistics included.

    Args:
        name: name of the policy loss.
        places: number of responses per rollout times the width of the widest. The number of ranks and tokens matters
            only here: KL-Cov breaks ties by place, which takes one round per eight bits.
    """
    numbers = [3]  # two sums and a count, for the means
    if name == "kl_cov":
        ties = max(1, math.ceil((places - 1).bit_length() / 8))
        numbers += [BINS + 2, *[(1 + TOPS) * BINS] * 3]  # four digits; two totals with the first
        numbers += [
            BINS + TOPS,
            *[BINS] * (ties - 1),
        ]  # the digits of the place; three sums with the first
    else:
        numbers += [2 * BINS + 2, *[(1 + TOPS) * BINS] * 3]  # four digits of the random bits and of the covariances
        numbers += [BINS + TOPS, *[BINS] * 3]  # the other four digits; three sums with the first
    return [SUM * count for count in numbers]


class Gather(NamedTuple):
    """One measured collective: number of ranks, bytes per rank, seconds."""

    ranks: int
    sent: int
    seconds: float


@dataclass(frozen=True)
class Network:
    """R ranks that pass on messages, all at the same time.

        all-gather in a ring     (R - 1) * (latency + sent / bandwidth)             every part goes around
        all-reduce in a ring     2 * (R - 1) * (latency + sent / (R * bandwidth))   parts add up, then sums go around
        all-reduce in a tree     2 * ceil(log2 R) * (latency + sent / bandwidth)    sums go up, the total comes down

    Attributes:
        latency: seconds per round.
        bandwidth: bytes per second.
    """

    latency: float
    bandwidth: float

    def seconds(self, ranks: int, sent: int) -> float:
        """Seconds of an all-gather in which each rank sends `sent` bytes; 0 for one rank."""
        return (ranks - 1) * (self.latency + sent / self.bandwidth)

    def ring_reduce_seconds(self, ranks: int, sent: int) -> float:
        """Seconds of an all-reduce of `sent` bytes in a ring, as in gloo; 0 for one rank."""
        return 2 * (ranks - 1) * (self.latency + sent / (ranks * self.bandwidth))

    def tree_reduce_seconds(self, ranks: int, sent: int) -> float:
        """Seconds of an all-reduce of `sent` bytes along a tree, as in NCCL for short messages; 0 for one rank."""
        return 2 * math.ceil(math.log2(ranks)) * (self.latency + sent / self.bandwidth)


def fit(measured: Sequence[Gather]) -> Network:
    """Fit a network by least squares of the relative errors.

    Raises:
        ValueError: The seconds do not grow with both rounds and bytes, so that no network explains them.
    """
    table = np.array([[gather.ranks - 1, (gather.ranks - 1) * gather.sent] for gather in measured], dtype=float)
    seconds = np.array([gather.seconds for gather in measured])
    (latency, per_byte), *_ = np.linalg.lstsq(table / seconds[:, None], np.ones(len(seconds)), rcond=None)
    if latency <= 0 or per_byte <= 0:
        raise ValueError(f"the fit gives latency={latency} s and {per_byte} s per byte; both must be positive")
    return Network(float(latency), float(1 / per_byte))


def relative_error(predict: Callable[[int, int], float], measured: Sequence[Gather]) -> float:
    """The median of |predicted / measured - 1|; `predict` is a method of `Network`."""
    return float(np.median([abs(predict(g.ranks, g.sent) / g.seconds - 1) for g in measured]))

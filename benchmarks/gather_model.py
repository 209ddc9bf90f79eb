"""What canon_trl sends between ranks besides TRL, and how long that takes: formulas, and their fit to measurements."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FLOAT, LONG = 4, 8  # bytes
NUMBERS_A_RESPONSE = 2  # the width of its rank's rollout and its length; every metric is one more
NUMBERS_A_TOKEN = 4  # its log-probability, the old one, its advantage and whether it is trained on
SUM = 8  # bytes of a number that is added over the ranks, a float64
BINS, TOPS = 256, 3  # counts of a digit; the shares of the largest covariances whose mean is logged


def rollout_bytes(responses: int, metrics: int) -> int:
    """What a rank sends for the rollout: some numbers of each of its responses."""
    return responses * (NUMBERS_A_RESPONSE + metrics) * FLOAT


def gathered_choice_bytes(responses: int, tokens: int) -> int:
    """What a rank sent for a choice by gathering: some numbers of every token, and the index of every response."""
    return responses * (NUMBERS_A_TOKEN * tokens * FLOAT + LONG)


def choice_rounds(name: str, places: int) -> list[int]:
    """What a rank gives to each all-reduce of one choice of tokens, statistics included, in bytes.

    Args:
        name: of the policy loss.
        places: responses of a rollout times the width of the widest. Neither ranks nor tokens appear but here, by
            which KL-Cov breaks ties: every eight bits of it take a round.
    """
    numbers = [3]  # two sums and a count, for the means
    if name == "kl_cov":
        ties = max(1, math.ceil((places - 1).bit_length() / 8))
        numbers += [BINS + 2, *[(1 + TOPS) * BINS] * 3]  # four digits; with the first two totals
        numbers += [
            BINS + TOPS,
            *[BINS] * (ties - 1),
        ]  # the digits of the place; first with three sums
    else:
        numbers += [2 * BINS + 2, *[(1 + TOPS) * BINS] * 3]  # four digits of the random bits and of the covariances
        numbers += [BINS + TOPS, *[BINS] * 3]  # the other four, first with three sums
    return [SUM * count for count in numbers]


class Gather(NamedTuple):
    """One measured collective: ranks, bytes of each of them, seconds."""

    ranks: int
    sent: int
    seconds: float


@dataclass(frozen=True)
class Network:
    """R ranks that hand on messages, all at the same time.

        all-gather in a ring     (R - 1) * (latency + sent / bandwidth)             every part goes around
        all-reduce in a ring     2 * (R - 1) * (latency + sent / (R * bandwidth))   the parts' sums, then each sum
        all-reduce in a tree     2 * ceil(log2 R) * (latency + sent / bandwidth)    sums go up, the total comes down

    Attributes:
        latency: of a round, in seconds.
        bandwidth: in bytes per second.
    """

    latency: float
    bandwidth: float

    def seconds(self, ranks: int, sent: int) -> float:
        """Of an all-gather to which each of the ranks sends that many bytes; 0 for a rank alone."""
        return (ranks - 1) * (self.latency + sent / self.bandwidth)

    def ring_reduce_seconds(self, ranks: int, sent: int) -> float:
        """Of an all-reduce of that many bytes, as gloo does it; 0 for a rank alone."""
        return 2 * (ranks - 1) * (self.latency + sent / (ranks * self.bandwidth))

    def tree_reduce_seconds(self, ranks: int, sent: int) -> float:
        """Of an all-reduce of that many bytes, as NCCL does short ones; 0 for a rank alone."""
        return 2 * math.ceil(math.log2(ranks)) * (self.latency + sent / self.bandwidth)


def fit(measured: Sequence[Gather]) -> Network:
    """Least squares of the relative errors.

    Raises:
        ValueError: the measurements grow with neither rounds nor bytes, so that no network explains them.
    """
    table = np.array([[gather.ranks - 1, (gather.ranks - 1) * gather.sent] for gather in measured], dtype=float)
    seconds = np.array([gather.seconds for gather in measured])
    (latency, per_byte), *_ = np.linalg.lstsq(table / seconds[:, None], np.ones(len(seconds)), rcond=None)
    if latency <= 0 or per_byte <= 0:
        raise ValueError(f"the fit gives latency={latency} s and {per_byte} s per byte; both must be positive")
    return Network(float(latency), float(1 / per_byte))


def relative_error(predict: Callable[[int, int], float], measured: Sequence[Gather]) -> float:
    """The median of |predicted / measured - 1|, `predict` being one of a network's."""
    return float(np.median([abs(predict(g.ranks, g.sent) / g.seconds - 1) for g in measured]))

"""How much canon_trl gathers beside TRL, and what that takes on a network: formulas, and their fit to measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FLOAT, LONG = 4, 8  # bytes
NUMBERS_A_RESPONSE = 2  # the width of its rank's rollout and its length; every metric is one more
NUMBERS_A_TOKEN = 4  # its log-probability, the old one, its advantage and whether it is trained on


def rollout_bytes(responses: int, metrics: int) -> int:
    """What a rank sends for the rollout: some numbers of each of its responses."""
    return responses * (NUMBERS_A_RESPONSE + metrics) * FLOAT


def gate_bytes(responses: int, tokens: int) -> int:
    """What a rank sends for one choice of tokens: some numbers of every token, and which responses they are."""
    return responses * (NUMBERS_A_TOKEN * tokens * FLOAT + LONG)


class Gather(NamedTuple):
    """One measured gather: ranks, bytes that each of them sent, seconds."""

    ranks: int
    sent: int
    seconds: float


@dataclass(frozen=True)
class Network:
    """A ring all-gather: in each of R - 1 rounds every rank hands on the part that it got last.

        seconds = (R - 1) * (latency + sent / bandwidth)

    Attributes:
        latency: of a round, in seconds.
        bandwidth: in bytes per second.
    """

    latency: float
    bandwidth: float

    def seconds(self, ranks: int, sent: int) -> float:
        """Of an all-gather to which each of the ranks sends that many bytes; 0 for a rank alone."""
        return (ranks - 1) * (self.latency + sent / self.bandwidth)


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


def relative_error(network: Network, measured: Sequence[Gather]) -> float:
    """The median of |predicted / measured - 1|."""
    return float(np.median([abs(network.seconds(g.ranks, g.sent) / g.seconds - 1) for g in measured]))

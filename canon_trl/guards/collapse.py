"""Detect a policy that collapses when its own certainty is rewarded."""

import math
from collections.abc import Mapping

from accelerate.logging import get_logger

logger = get_logger(__name__)  # logs on the main process only, since every rank sees the same numbers

# The expected range of a mean, as a share of the first rollout's. Responses grow if that adds certain tokens.
EXPECTED_SHARES = {"length": (0.5, 2.0), "entropy": (0.1, math.inf), "surprisal": (0.1, math.inf)}


# One answer to most prompts, if that is new.
MOST, TIMES_FIRST = 0.5, 2.0


class Collapse:
    """Compares the mean length and entropy of each rollout with those of the first one; warns once about each.

    Attributes:
        first: the means of the first rollout, saved in checkpoints.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self._warned: set[str] = set()

    def compare(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the means as shares of the first rollout's, by name; NaN if the first is 0.

        Args:
            means: over all responses of a rollout, by name: `length` in tokens, `entropy` or `surprisal` in nats.
        """
        self.first = dict(means) | self.first
        shares = {name: mean / self.first[name] if self.first[name] else math.nan for name, mean in means.items()}
        for name, share in shares.items():
            low, high = EXPECTED_SHARES[name]
            if (share < low or share > high) and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "the mean %s of the responses was %.3g in the first rollout and is %.3g now: a policy rewarded "
                    "for its own certainty can become certain of any answer. Compare the accuracy on labelled "
                    "prompts, and go back to an earlier checkpoint if it has fallen",
                    name,
                    self.first[name],
                    means[name],
                )
        return shares

    def watch_answers(self, shares: Mapping[str, float]) -> None:
        """Warn once if most responses of a rollout give one answer, and fewer did in the first rollout.

        Args:
            shares: `one_answer_share`, the share of the responses with the most frequent answer; empty if no policy
                reward reads answers.
        """
        for name in shares.keys() & {"one_answer_share"}:
            first = self.first.setdefault(name, shares[name])
            if shares[name] > max(MOST, TIMES_FIRST * first) and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "%.0f%% of the responses give the same answer, whatever the prompt, and %.0f%% did in the first "
                    "rollout: a policy rewarded for agreeing with itself can agree on any answer. Compare the "
                    "accuracy on labelled prompts, and go back to an earlier checkpoint if it has fallen",
                    100 * shares[name],
                    100 * first,
                )

"""A policy that collapses where its own certainty is rewarded."""

import math
from collections.abc import Mapping

from accelerate.logging import get_logger

logger = get_logger(__name__)  # which speaks on the main process alone: every rank sees the same numbers

# Between which shares of the first rollout's mean a mean may lie. Responses grow where certain tokens can be added.
EXPECTED = {"length": (0.5, 2.0), "entropy": (0.1, math.inf), "surprisal": (0.1, math.inf)}


class Collapse:
    """Compares the mean length and entropy of each rollout with those of the run's first; warns once of each.

    Attributes:
        first: the means of the first rollout, which a checkpoint keeps.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self._told: set[str] = set()

    def compare(self, means: Mapping[str, float]) -> dict[str, float]:
        """The means as shares of the first rollout's, by name; NaN where that is 0.

        Args:
            means: over all responses of a rollout, of `length` in tokens and of `entropy` or `surprisal` in nats.
        """
        self.first = self.first or dict(means)
        shares = {name: mean / self.first[name] if self.first[name] else math.nan for name, mean in means.items()}
        for name, share in shares.items():
            low, high = EXPECTED[name]
            if (share < low or share > high) and name not in self._told:
                self._told.add(name)
                logger.warning(
                    "the mean %s of the responses was %.3g in the first rollout and is %.3g now: a policy that is "
                    "rewarded for its own certainty can become certain of anything. Compare the accuracy on labelled "
                    "prompts, and go back to an earlier checkpoint if it has fallen",
                    name,
                    self.first[name],
                    means[name],
                )
        return shares

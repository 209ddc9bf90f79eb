"""Reward functions that tell no response from another."""

from collections.abc import Sequence

from accelerate.logging import get_logger

logger = get_logger(__name__)  # which speaks on the main process alone: every rank counts the same

# Rollouts in a row, after which it is said that there is nothing to learn.
WARN_AFTER = 10


class ConstantRewards:
    """Counts, for every reward function, the rollouts in a row in which all responses got the same; warns once.

    Attributes:
        in_a_row: the counts, in the order of the reward functions; what a checkpoint keeps.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.in_a_row = [0] * len(names)
        self._named: set[str] = set()

    def count(self, lowest: Sequence[float], highest: Sequence[float]) -> dict[str, float]:
        """The counts by name, with a rollout whose rewards have these bounds; inf and -inf where none was scored."""
        for index, name in enumerate(self.names):
            constant = lowest[index] >= highest[index]
            self.in_a_row[index] = self.in_a_row[index] + 1 if constant else 0
            if self.in_a_row[index] >= WARN_AFTER and name not in self._named:
                self._named.add(name)
                logger.warning(
                    "reward function %r gave %s to every response of the last %d rollouts: it teaches nothing. Look "
                    "at what it makes of the completions of this run, with log_completions=True",
                    name,
                    lowest[index] if lowest[index] == highest[index] else None,
                    WARN_AFTER,
                )
        return dict(zip(self.names, map(float, self.in_a_row), strict=True))

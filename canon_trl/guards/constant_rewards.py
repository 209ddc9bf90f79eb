"""Detect reward functions that give all responses the same reward."""

from collections.abc import Sequence

from accelerate.logging import get_logger

logger = get_logger(__name__)  # logs on the main process only, since every rank counts the same

# Warn after this many constant rollouts in a row.
WARN_AFTER = 10


class ConstantRewards:
    """Counts, per reward function, the rollouts in a row with the same reward for all responses; warns once.

    Attributes:
        in_a_row: the counts, in the order of the reward functions, saved in checkpoints.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.in_a_row = [0] * len(names)
        self._warned: set[str] = set()

    def count(self, lowest: Sequence[float], highest: Sequence[float]) -> dict[str, float]:
        """Add a rollout, and return the counts by name.

        Args:
            lowest, highest: reward per function; inf and -inf if no response was scored.
        """
        for index, name in enumerate(self.names):
            constant = lowest[index] >= highest[index]
            self.in_a_row[index] = self.in_a_row[index] + 1 if constant else 0
            if self.in_a_row[index] >= WARN_AFTER and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "reward function %r gave %s to every response of the last %d rollouts: it teaches nothing. "
                    "Compare its rewards with the completions, using log_completions=True",
                    name,
                    lowest[index] if lowest[index] == highest[index] else None,
                    WARN_AFTER,
                )
        return dict(zip(self.names, map(float, self.in_a_row), strict=True))

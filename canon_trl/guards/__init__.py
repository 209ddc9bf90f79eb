"""Checks that `trl.rewards` leaves to its caller: of what a reward function returns, and of its time."""

from canon_trl.guards.checks import checked_rewards
from canon_trl.guards.time_limits import time_limit, too_slow

__all__ = ["checked_rewards", "time_limit", "too_slow"]

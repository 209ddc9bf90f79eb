"""What `trl.rewards` leaves to its caller: checks of what a reward function returns, and a limit on its time."""

from canon_trl.guards.checks import checked_rewards
from canon_trl.guards.time_limits import time_limit, too_slow

__all__ = ["checked_rewards", "time_limit", "too_slow"]

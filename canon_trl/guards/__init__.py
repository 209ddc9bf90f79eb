"""Checks of users' functions: what they return, how long they take, and failures on one rank."""

from canon_trl.guards.checks import checked_rewards
from canon_trl.guards.time_limits import time_limit, too_slow

__all__ = ["checked_rewards", "time_limit", "too_slow"]

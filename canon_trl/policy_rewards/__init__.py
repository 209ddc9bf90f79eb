"""Rewards from the policy itself: what its own probabilities say about a response, without a label or a judge.

Each is a pure function in a file of its own that returns `(B,)`. It reads what a response metric reads: `entropies`,
`log_probs` and `mask` of the policy that wrote the responses, `(B, T)` each, and what TRL hands a reward function.
[`POLICY_REWARDS`] names them for the config; they are added, with their weights, to the rewards of the reward
functions.
"""

from dataclasses import dataclass

from canon_trl.method import Method, Stage, by_name
from canon_trl.policy_rewards.rent import rent_reward

POLICY_REWARDS = by_name(Method("rent", rent_reward))

# What can be read besides depends on the dataset's columns.
STAGE = Stage("policy_reward", POLICY_REWARDS, called_in="hook/policy_rewards.py")


@dataclass(frozen=True)
class PolicyReward:
    """A policy reward with its options bound, and its weight in the sum of all rewards."""

    method: Method
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Under which it is logged and tabulated; of an import path, the function's."""
        return self.method.name.rpartition(":")[2]


__all__ = ["POLICY_REWARDS", "STAGE", "PolicyReward", "rent_reward"]

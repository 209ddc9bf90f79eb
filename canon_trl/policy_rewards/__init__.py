"""Rewards from the policy itself: what its own probabilities say about a response, without a label or a judge.

Each is a pure function of `(B, T)` tensors that returns `(B,)`, in a file of its own. [`POLICY_REWARDS`] names them
for the config; they are added, with their weights, to the rewards of the reward functions.
"""

from canon_trl.method import Method, by_name
from canon_trl.policy_rewards.rent import rent_reward

POLICY_REWARDS = by_name(Method("rent", rent_reward))

__all__ = ["POLICY_REWARDS", "rent_reward"]

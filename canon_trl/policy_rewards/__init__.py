"""Policy rewards: rewards from the policy's own probabilities or answers, without a label or a judge.

Each is a pure function in a separate file that returns `(B,)`. It reads what a response metric reads: `entropies`,
`log_probs` and `mask` of the policy that wrote the responses, `(B, T)` each, and everything that TRL passes to reward
functions. It can also compare answers: `answer_ids`, `(B,)`, has a number for the answer of each response, and
`group_answer_ids`, `(B, G)`, those of all responses to the same prompt. [`POLICY_REWARDS`] lists the rewards by the
names that the config uses. The hook adds them, with their weights, to the rewards of the reward functions.
"""

from dataclasses import dataclass

from canon_trl.method import Method, Stage, by_name
from canon_trl.policy_rewards.em_rl import em_rl_sequence_reward, em_rl_token_reward
from canon_trl.policy_rewards.majority_vote import majority_vote_reward
from canon_trl.policy_rewards.rent import rent_reward
from canon_trl.policy_rewards.self_consistency import self_consistency_reward

POLICY_REWARDS = by_name(
    Method("rent", rent_reward),
    Method("em_rl_sequence", em_rl_sequence_reward),
    Method("em_rl_token", em_rl_token_reward),
    Method("self_consistency", self_consistency_reward),
    Method("majority_vote", majority_vote_reward),
)

# A policy reward can also read the columns of the dataset, so the stage has no fixed list of what is readable.
STAGE = Stage("policy_reward", POLICY_REWARDS, called_in="hook/policy_rewards.py")


@dataclass(frozen=True)
class PolicyReward:
    """A policy reward with its options, and its weight in the sum of all rewards."""

    method: Method
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The name in logs and tables; for an import path, the name of the function."""
        return self.method.name.rpartition(":")[2]


__all__ = [
    "POLICY_REWARDS",
    "STAGE",
    "PolicyReward",
    "em_rl_sequence_reward",
    "em_rl_token_reward",
    "majority_vote_reward",
    "rent_reward",
    "self_consistency_reward",
]

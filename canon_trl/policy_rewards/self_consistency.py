"""Self-consistency, the baseline of EM-RL (https://huggingface.co/papers/2505.15134)."""

from torch import Tensor

from canon_trl.policy_rewards.answers import NO_ANSWER
from canon_trl.policy_rewards.em_rl import PAPER as EM_RL

PAPER = EM_RL


def self_consistency_reward(answer_ids: Tensor, group_answer_ids: Tensor) -> Tensor:
    """Reward a response for the share of responses to its prompt that give the same answer, without any label.

        r_i = n(a_i) / G    n(a): number of responses in the group of G with the answer a

    It needs no entropies, so it costs no scoring pass. The config's `answer_extractor` finds the answers in the text;
    two answers match if their texts do. It rewards only agreement, so the policy may learn to give one answer to every
    prompt: watch `policy_reward/one_answer_share`, and stop on a labelled validation set.

    Use it without labels, if answers are short and exact and the most frequent one is usually right.

    The authors' code (at 8428ba9) compares answers as mathematics, and gives 1 / G to a response without an answer, as
    if it agreed with itself; here it gets 0. Its setting is as for `em_rl_sequence`: RLOO, 4 responses per prompt, a
    learning rate of 1e-6 and a KL penalty of 0.001 to the reference.

    Args:
        answer_ids: `(B,)`, a number for each response's answer, the same for the same answer; -1 without one.
        group_answer_ids: `(B, G)`, those of all responses to its prompt, including itself.

    Returns:
        `(B,)` float32 in [0, 1]; 0 for a response without an answer, 1 for an answer in a group of one. Answers that
        are equally frequent get the same reward.
    """
    same = group_answer_ids == answer_ids.unsqueeze(-1)
    return same.float().mean(dim=-1).masked_fill(answer_ids == NO_ANSWER, 0.0)

"""Majority voting as a reward: TTRL, test-time reinforcement learning (https://huggingface.co/papers/2504.16084)."""

from torch import Tensor

from canon_trl.paper import Paper
from canon_trl.policy_rewards.answers import NO_ANSWER, count_votes

PAPER = Paper(
    key="zuo2025ttrl",
    title="TTRL: Test-Time Reinforcement Learning",
    authors="Yuxin Zuo and Kaiyan Zhang and Li Sheng and Shang Qu and Ganqu Cui and Xuekai Zhu and Haozhan Li and "
    "Yuchen Zhang and Xinwei Long and Ermo Hua and Biqing Qi and Youbang Sun and Zhiyuan Ma and Lifan Yuan and "
    "Ning Ding and Bowen Zhou",
    id="2504.16084",
    code="PRIME-RL/TTRL",
)


def majority_vote_reward(answer_ids: Tensor, group_answer_ids: Tensor) -> Tensor:
    """Reward a response if it gives the most frequent answer to its prompt, without any label.

        r_i = 1 if a_i is the most frequent answer of the group, else 0

    It needs no entropies, so it costs no scoring pass. The config's `answer_extractor` finds the answers in the text;
    two answers match if their texts do. A response without an answer has no vote. If the majority is wrong, training
    makes it larger: watch `policy_reward/one_answer_share`, and stop on a labelled validation set.

    Use it like `self_consistency`, if groups are large enough for a vote. Its rewards are 0 and 1, which every
    estimator accepts (`pshw` with `low=0`).

    If several answers are equally frequent, all of them get 1; the authors' code (at 3e2cc93) takes the one that was
    sampled first. The code compares answers as mathematics. It lets 64 responses vote and trains on 32 of them; here
    training uses all that vote. Its scripts use GRPO with a learning rate of 5e-7.

    Args:
        answer_ids: `(B,)`, a number for each response's answer, the same for the same answer; -1 without one.
        group_answer_ids: `(B, G)`, those of all responses to its prompt, including itself.

    Returns:
        `(B,)` float32, 0 or 1; 0 for a response without an answer, 1 for an answer in a group of one.
    """
    most = count_votes(group_answer_ids).amax(dim=-1)
    votes = (group_answer_ids == answer_ids.unsqueeze(-1)).sum(dim=-1)
    return (votes == most).float().masked_fill(answer_ids == NO_ANSWER, 0.0)

"""GRPO, group relative policy optimization (https://huggingface.co/papers/2402.03300).

Shapes: `rewards` is `(P, G)`, one prompt group per row; NaN marks a response that no reward function could score.
Such a response does not count in the mean and gets advantage 0, as do groups with fewer than two scored responses.
(The reference implementations return the raw reward of a group of one, which does not occur in training.) A group with
equal rewards gets exactly 0, decided by comparing rewards: the float32 mean of seven rewards of 0.1 is not quite 0.1,
and a deviation near zero, or Adam, would scale the difference up to a whole step.
"""

from torch import Tensor

from canon_trl.advantages.groups import as_float, group_mean, group_std, has_spread, is_scored, zero_invalid
from canon_trl.options import Positive
from canon_trl.paper import Paper

PAPER = Paper(
    key="shao2024deepseekmath",
    title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    authors="Zhihong Shao and Peiyi Wang and Qihao Zhu and Runxin Xu and Junxiao Song and Xiao Bi and "
    "Haowei Zhang and Mingchuan Zhang and Y. K. Li and Y. Wu and Daya Guo",
    id="2402.03300",
)


def grpo_advantage(rewards: Tensor, *, eps: Positive = 1e-6) -> Tensor:
    """GRPO: the reward, standardised within the group (Sec. 4.1.2).

        A_i = (r_i - mean(r)) / (std(r) + eps)

    std is the sample standard deviation with divisor n - 1. `eps` is 1e-6 in verl and 1e-4 in TRL.

    Returns:
        `(P, G)` in the dtype of `rewards`.
    """
    scored = as_float(rewards)
    valid = is_scored(scored)
    standardised = (scored - group_mean(scored, valid)) / (group_std(scored, valid) + eps)
    return zero_invalid(standardised, valid & has_spread(scored, valid), like=rewards)

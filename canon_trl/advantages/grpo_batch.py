"""GRPO scaled over the batch (https://huggingface.co/papers/2508.08221). Edge cases are those of `grpo.py`."""

from torch import Tensor

from canon_trl.advantages.groups import as_float, group_mean, group_std, has_spread, is_scored, zero_invalid
from canon_trl.options import Positive
from canon_trl.paper import Paper

PAPER = Paper(
    key="liu2025part",
    title="Part I: Tricks or Traps? A Deep Dive into RL for LLM Reasoning",
    authors="Zihe Liu and Jiashun Liu and Yancheng He and Weixun Wang and Jiaheng Liu and Ling Pan and Xinyu Hu and "
    "Shaopan Xiong and Ju Huang and Jian Hu and Shengyi Huang and Johan Obando-Ceron and Siran Yang and "
    "Jiamang Wang and Wenbo Su and Bo Zheng",
    id="2508.08221",
)


def grpo_batch_advantage(rewards: Tensor, *, eps: Positive = 1e-4) -> Tensor:
    """GRPO scaled by the deviation of the whole batch, so that groups with little spread get no larger advantages.

        A_i = (r_i - mean(r)) / (std_batch(r) + eps)

    The mean is over the group; std_batch is over all scored responses of the batch, with divisor n - 1. The values
    equal those of TRL with `scale_rewards="batch"`.

    Use it with graded rewards, where GRPO gives groups with little spread large advantages. With rewards of 0 and 1 it
    differs little from Dr.GRPO times a constant.

    Args:
        rewards: `(P, G)`; NaN marks a response that no reward function could score.

    Returns:
        `(P, G)` in the dtype of `rewards`; exactly 0 for unscored responses and in groups with equal rewards or fewer
        than two scored responses.
    """
    scored = as_float(rewards)
    valid = is_scored(scored)
    scaled = (scored - group_mean(scored, valid)) / (group_std(scored.flatten(), valid.flatten()) + eps)
    return zero_invalid(scaled, valid & has_spread(scored, valid), like=rewards)

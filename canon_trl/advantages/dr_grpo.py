"""Dr.GRPO, GRPO done right (https://huggingface.co/papers/2503.20783). Edge cases are those of `grpo.py`."""

from torch import Tensor

from canon_trl.advantages.groups import as_float, group_mean, has_spread, is_scored, zero_invalid
from canon_trl.paper import Paper

PAPER = Paper(
    key="liu2025understanding",
    title="Understanding R1-Zero-Like Training: A Critical Perspective",
    authors="Zichen Liu and Changyu Chen and Wenjun Li and Penghui Qi and Tianyu Pang and Chao Du and Wee Sun Lee "
    "and Min Lin",
    id="2503.20783",
    code="sail-sg/understand-r1-zero",
)


def dr_grpo_advantage(rewards: Tensor) -> Tensor:
    """Dr.GRPO: the centred reward, without division (Sec. 3.2).

        A_i = r_i - mean(r)

    Args:
        rewards: `(P, G)`; NaN marks a response that no reward function could score.

    Returns:
        `(P, G)` in the dtype of `rewards`; exactly 0 for unscored responses and in groups with equal rewards or fewer
        than two scored responses.
    """
    scored = as_float(rewards)
    valid = is_scored(scored)
    return zero_invalid(scored - group_mean(scored, valid), valid & has_spread(scored, valid), like=rewards)

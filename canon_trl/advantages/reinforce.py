"""PSR, NSR and W-REINFORCE: learning from right answers, from wrong ones, or from both with weights
(https://huggingface.co/papers/2506.01347, Sec. 2.2 and 5).

These are the parts of REINFORCE on binary rewards without a baseline. PSR reinforces right answers, NSR pushes wrong
ones away, and W-REINFORCE adds the two with a smaller weight on right ones. An advantage depends on the response's own
reward only, not on its group.

Shapes: `rewards` is `(P, G)`, 1 for a right answer and 0 for a wrong one; NaN marks a response that no reward function
could score and gets 0. The trainer rejects other rewards; the functions treat them as the reference does.
"""

import torch
from torch import Tensor

from canon_trl.advantages.groups import as_float, is_scored, zero_invalid
from canon_trl.options import NotNegative, check_arguments
from canon_trl.paper import Paper

PAPER = Paper(
    key="zhu2025surprising",
    title="The Surprising Effectiveness of Negative Reinforcement in LLM Reasoning",
    authors="Xinyu Zhu and Mengzhou Xia and Zhepei Wei and Wei-Lin Chen and Danqi Chen and Yu Meng",
    id="2506.01347",
    code="TianHongZXY/RLVR-Decomposed",
)


def psr_advantage(rewards: Tensor) -> Tensor:
    """Positive sample reinforcement: A = r, so 1 for a right answer and 0 for a wrong one."""
    return zero_invalid(as_float(rewards), is_scored(rewards), like=rewards)


def nsr_advantage(rewards: Tensor) -> Tensor:
    """Negative sample reinforcement: A = r - 1, so 0 for a right answer and -1 for a wrong one."""
    return zero_invalid(as_float(rewards) - 1, is_scored(rewards), like=rewards)


def w_reinforce_advantage(rewards: Tensor, *, positive_weight: NotNegative = 0.1) -> Tensor:
    """W-REINFORCE: A = w for a right answer and -1 for a wrong one; other rewards stay unchanged.

    `positive_weight` is w, the lambda of Eq. 9, 0.1 in the paper; 1 is REINFORCE with rewards +1 and -1, 0 is NSR.

    Raises:
        ValueError: `positive_weight` is out of bounds.
    """
    check_arguments(w_reinforce_advantage, positive_weight=positive_weight)
    scored = as_float(rewards)
    advantages = torch.where(scored == 1, positive_weight, torch.where(scored == 0, -1.0, scored))
    return zero_invalid(advantages, is_scored(scored), like=rewards)

"""A-GRAE, asymmetric group-relative advantage estimation (https://huggingface.co/papers/2602.05548)."""

from typing import Literal

import torch
from torch import Tensor

from canon_trl.advantages.dr_grpo import dr_grpo_advantage
from canon_trl.advantages.groups import as_float, group_mean, has_spread, is_scored, zero_invalid
from canon_trl.advantages.grpo import grpo_advantage
from canon_trl.options import Positive, check_arguments
from canon_trl.paper import Paper

PAPER = Paper(
    key="yu2026unveiling",
    title="Unveiling Implicit Advantage Symmetry: Why GRPO Struggles with Exploration and Difficulty Adaptation",
    authors="Zhiqi Yu and Zhangquan Chen and Mengting Liu and Heye Zhang and Liangqiong Qu",
    id="2602.05548",
    code="Yu7-code/A-GRAE",
)

Form = Literal["paper", "released"]


def a_grae_advantage(
    rewards: Tensor, *, scale: bool = True, attenuation: Positive = 1.0, eps: Positive = 1e-6, form: Form = "paper"
) -> Tensor:
    """Weight prompt groups from easy to hard as the model improves, and damp positive advantages early on.

    With p the mean reward of the group, q the mean of p over the batch on all ranks and A the group-relative
    advantage (Eq. 11 to 13):

        easy = A / (2 * (sqrt(1 - p) + eps))    large if most answers in the group are right
        hard = A / (2 * (sqrt(p) + eps))        large if most are wrong
        A'   = (1 - q) * easy + q * hard
        A'  *= min(1, q / attenuation)          where A' > 0, while the model is weak

    In `easy`, the authors' code divides by 1 - sqrt(p) + eps, which gives a factor of 15.7 instead of 2 at p = 15/16;
    `form="released"` does the same. In their published scripts neither form acts: the weighting needs a switch to be
    exactly 2.0, and the trainer decays that switch from the first step on. So it is unknown which form made the
    paper's tables.

    Args:
        rewards: `(P, G)` in [0, 1]; NaN marks a response that no reward function could score. Outside [0, 1] the
            square roots are undefined, so the trainer rejects such rewards.
        scale: True takes GRPO's A, divided by the sample standard deviation; False takes Dr.GRPO's, which is only
            centred.
        attenuation: the q at which positive advantages count in full, above 0: 1 for mathematics, 0.5 for Geometry3K
            and medical tasks (Appendix C.2).
        eps: added to every divisor, including the standard deviation, as in the authors' code; the paper has none. 0
            gives the paper's formula, but the trainer rejects it.
        form: the divisor of `easy`: `"paper"`, or `"released"` as in the authors' code.

    Returns:
        `(P, G)` in the dtype of `rewards`; 0 for unscored responses and in groups with equal rewards or fewer than two
        scored responses. (The reference scales a group of one up to tens of thousands.)

    Raises:
        ValueError: `attenuation` is out of bounds, or `form` is unknown.
    """
    check_arguments(a_grae_advantage, attenuation=attenuation, form=form)
    scored = as_float(rewards)
    valid = is_scored(scored)
    relative = grpo_advantage(scored, eps=eps) if scale else dr_grpo_advantage(scored)
    p = group_mean(scored, valid)
    q = p.nanmean()
    solved = (1 - p).sqrt() if form == "paper" else 1 - p.sqrt()
    easy = 0.5 * relative / (solved + eps)
    hard = 0.5 * relative / (p.sqrt() + eps)
    advantages = (1 - q) * easy + q * hard
    damped = advantages * (q / attenuation).clamp(max=1)
    comparable = valid & has_spread(scored, valid)  # without spread and with eps=0, easy or hard is 0 / 0
    return zero_invalid(torch.where(advantages > 0, damped, advantages), comparable, like=rewards)

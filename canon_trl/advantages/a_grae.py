"""A-GRAE, asymmetric group-relative advantage estimation (https://huggingface.co/papers/2602.05548)."""

import torch
from torch import Tensor

from canon_trl.advantages.group_relative import dr_grpo_advantage, grpo_advantage
from canon_trl.advantages.groups import as_float, group_mean, has_spread, is_scored, zero_invalid


def a_grae_advantage(rewards: Tensor, *, scale: bool = True, attenuation: float = 1.0, eps: float = 1e-6) -> Tensor:
    """Weigh prompt groups by difficulty, from easy to hard as the model improves, and damp what is positive early on.

    With p the mean reward of the group, q the mean of p over the batch of all ranks and A the group-relative
    advantage:

        easy = A / (2 * (1 - sqrt(p) + eps))    large where the group is nearly solved
        hard = A / (2 * (sqrt(p) + eps))        large where it is nearly lost
        A'   = (1 - q) * easy + q * hard
        A'  *= min(1, q / attenuation)          where A' > 0, while the model is weak

    Departure: the published trainer decays the switch of this weighting from the first step on, and the weighting
    tests the switch for exactly 2.0, so in the published scripts it never acts. This is the paper's formula.

    Args:
        rewards: `(P, G)` in [0, 1]; NaN marks a response that no reward function could score. Outside [0, 1] the
            square roots are undefined or change the sign; the trainer refuses such rewards.
        scale: whether A is GRPO's, divided by the sample standard deviation, or Dr.GRPO's, only centred.
        attenuation: the q at which positive advantages count in full, above 0: 1 for mathematics, 0.5 for Geometry3K
            and medical tasks in the authors' code.
        eps: added to every divisor. 0 is the bare formula; the trainer refuses it.

    Returns:
        `(P, G)` in the dtype of `rewards`; 0 for unscored responses and in groups with equal rewards or fewer than two
        scored ones. (The reference scales a group of one up to tens of thousands.)

    Raises:
        ValueError: `attenuation` is not positive.
    """
    if not attenuation > 0:
        raise ValueError(f"attenuation={attenuation!r} must be positive")
    scored = as_float(rewards)
    valid = is_scored(scored)
    relative = grpo_advantage(scored, eps=eps) if scale else dr_grpo_advantage(scored)
    p = group_mean(scored, valid)
    q = p.nanmean()
    easy = 0.5 * relative / (1 - p.sqrt() + eps)
    hard = 0.5 * relative / (p.sqrt() + eps)
    advantages = (1 - q) * easy + q * hard
    damped = advantages * (q / attenuation).clamp(max=1)
    comparable = valid & has_spread(scored, valid)  # 0 / 0 where a group is all right or all wrong and eps is 0
    return zero_invalid(torch.where(advantages > 0, damped, advantages), comparable, like=rewards)

"""DADS, difficulty-adaptive divergence shaping (https://huggingface.co/papers/2506.21655)."""

import math

import torch
from torch import Tensor

from canon_trl.paper import Paper
from canon_trl.rounding import rounding_error

PAPER = Paper(
    key="hong2025apo",
    title="APO: Enhancing Reasoning Ability of MLLMs via Asymmetric Policy Optimization",
    authors="Minjie Hong and Zirun Guo and Yan Xia and Zehan Wang and Ziang Zhang and Tao Jin and Zhou Zhao",
    id="2506.21655",
    code="Indolent-Kawhi/View-R1",
)


def dads_weights(rewards: Tensor, advantages: Tensor) -> Tensor:
    """Return the weight of each response's divergence from the reference, see [`dads`].

    Args:
        rewards: `(P, G)`. A response is right where its reward is at least 1, up to rounding. NaN marks a response
            that no reward function could score, which does not count.
        advantages: `(P, G)`, or `(P, 1)` for one response per group.

    Returns:
        In the shape of `advantages` and at least float32.
    """
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    right = rewards + rounding_error(rewards) >= 1
    rate = right.sum(dim=-1, keepdim=True) / (~rewards.isnan()).sum(dim=-1, keepdim=True).clamp(min=1)
    eased = -torch.expm1(-math.e * rate.to(rewards.dtype))
    return torch.where((advantages > 0) & (rate > 0) & (rate < 1), eased, 1.0)


def dads(
    log_probs: Tensor,
    ref_log_probs: Tensor,
    group_rewards: Tensor,
    response_advantages: Tensor,
    mask: Tensor,
    beta: float,
) -> Tensor:
    """Tie right answers to hard prompts less closely to the reference model than other responses.

        f    = share of the group's responses that are right
        k_i  = 1 - exp(-e * f)      for a response with A_i > 0 in a group with 0 < f < 1, else 1; e = 2.718...
        KL_t = exp(ref_t - lp_t) - (ref_t - lp_t) - 1
        loss = ... + beta * k_i * KL_t

    A right answer to a prompt that one response in eight solves has k = 0.29; if nearly all solve it, k = 0.93. TRL's
    loss already contains beta * KL_t, so the term is beta * (k_i - 1) * KL_t, which is never positive; `beta` is TRL's
    option, 0.001 in the authors' script. TRL's `use_bias_correction_kl`, on by default, must be off.

    The formula follows the authors' code, where a response is right if trunc(r) = 1; here it is right if r >= 1, up to
    rounding. The code averages KL_t over each response and then over the responses, as `loss_type: grpo` does; here it
    is aggregated like the loss.

    Use it with `beta` above 0, if the KL term holds rare right answers back. Without a KL term, the config rejects it.

    Args:
        log_probs, ref_log_probs: `(B, T)`, of the policy (with gradient) and of the reference.
        group_rewards: `(B, G)`, rewards of all responses to the row's prompt.
        response_advantages: `(B,)`.
        mask: `(B, T)`, true on the trained tokens.
        beta: weight of TRL's KL term.

    Returns:
        `(B, T)`; 0 off the mask.
    """
    weights = dads_weights(group_rewards, response_advantages.unsqueeze(1)).to(log_probs.dtype)
    log_ratio = (ref_log_probs - log_probs).masked_fill(~mask.bool(), 0.0)
    return beta * (weights - 1) * (torch.expm1(log_ratio) - log_ratio)

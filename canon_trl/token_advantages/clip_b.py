"""Clip_B, batch-normalised clipping by the entropy discriminator (https://huggingface.co/papers/2602.03392)."""

from collections.abc import Callable

import torch
from torch import Tensor

from canon_trl.options import NotNegative, check_arguments
from canon_trl.paper import Paper
from canon_trl.tokens import token_mean

PAPER = Paper(
    key="wang2026entropy",
    title="On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models",
    authors="Shumin Wang and Yuexiang Xie and Wenhao Zhang and Yuchang Sun and Yanxi Chen and Yaliang Li and "
    "Yanyong Zhang",
    id="2602.03392",
    code="agentscope-ai/Trinity-RFT",
)


def clip_b_mask(
    advantages: Tensor,
    log_probs: Tensor,
    entropies: Tensor,
    mask: Tensor,
    mean: Callable[[Tensor, Tensor], Tensor] = token_mean,
    *,
    mu: NotNegative = 2.5,
) -> Tensor:
    """Drop the tokens with a negative advantage whose update would lower the entropy most.

        S_t       = p_t * (H_t + ln p_t)
        dropped_t = A_t < 0 and S_t - mean(S) < -mu * std(S)

    To first order, raising the logit of a token lowers the entropy by a multiple of S_t. So pushing down a token with
    a negative S, an unlikely one in an uncertain position, makes the policy more certain. The mean and the population
    deviation are over the trained tokens.

    The formula follows the authors' code. There a dropped token also leaves the divisor of the loss; here it has no
    loss and no gradient, but the divisor counts it. The code computes S for a whole batch before its first update,
    from the rollout's log-probabilities; here it is computed at every update, from the current policy, over the tokens
    of a micro-batch on all ranks. Clip_V, the paper's other form, needs a sum over the vocabulary and is not
    implemented.

    Use it to slow the fall of entropy without a bonus in the loss. If responses are certain throughout, it finds
    little to drop.

    Args:
        advantages: `(B, T)`, or `(B,)` for one advantage per response.
        log_probs, entropies: `(B, T)`, in nats, of the current policy.
        mask: `(B, T)`, true on the trained tokens. Values off the mask have no effect.
        mean: takes the mean of `(B, T)` values over the tokens in a mask; in training
            [`~canon_trl.tokens.Tokens.mean`], which covers all ranks.
        mu: number of deviations from the mean; 2.5 in the code.

    Returns:
        `(B, T)` bool, true on the dropped tokens. None are dropped where the deviation is below 1e-12.

    Raises:
        ValueError: `mu` is out of its bounds.
    """
    check_arguments(clip_b_mask, mu=mu)
    mask, dtype = mask.bool(), torch.promote_types(log_probs.dtype, torch.float32)
    log_probs, entropies = log_probs.detach().to(dtype), entropies.detach().to(dtype)
    discriminator = (log_probs.exp() * (entropies + log_probs)).masked_fill(~mask, 0.0)
    centred = discriminator - mean(discriminator, mask)
    deviation = mean(centred.square(), mask).sqrt()
    advantages = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
    return mask & (advantages < 0) & (centred < -mu * deviation) & (deviation >= 1e-12)

"""DMMPT, dynamic masking of well-mastered positive tokens (https://huggingface.co/papers/2507.19766)."""

from typing import Annotated

import torch
from torch import Tensor

from canon_trl.options import check_arguments
from canon_trl.paper import Paper
from canon_trl.rounding import rounding_error

PAPER = Paper(
    key="du2025ulorl",
    title="UloRL: An Ultra-Long Output Reinforcement Learning Approach for Advancing Large Language Models' Reasoning "
    "Abilities",
    authors="Dong Du and Shulin Liu and Tao Yang and Shaohua Chen and Yang Li",
    id="2507.19766",
)


def dmmpt_mask(
    rewards: Tensor,
    log_probs: Tensor,
    entropies: Tensor,
    mask: Tensor,
    *,
    tau: Annotated[float, "(0, 1e6]"] = 0.99,
    sigma: Annotated[float, "[0, 1e6]"] = 0.2,
) -> Tensor:
    """Drop the tokens of right responses that the policy already predicts, while its entropy is low (Eq. 9 and 10).

        dropped_it = r_i is right and p_it >= tau and mean_t(H_it) < sigma

    Training on such tokens only sharpens the distribution further. The mean entropy is that of the response. Above
    `sigma` every token is trained on, because always dropping them makes the entropy grow without end.

    A dropped token has no loss and no gradient; the divisor of the loss still counts it, as in Eq. 10. The entropy
    in that equation has no minus sign, and the paper publishes no code. Its experiments use one update per rollout,
    the token mean, ratios clipped alike on both sides and no KL term.

    Use it in long runs whose entropy has already fallen. While the entropy of responses stays above `sigma`, it drops
    nothing.

    Args:
        rewards: `(B,)`, the weighted reward of each response. A response is right where it is at least 1, up to
            rounding; the paper writes r = 1. NaN is not right.
        log_probs: `(B, T)`, of the current policy at every update.
        entropies: `(B, T)`, in nats, of the current policy at every update.
        mask: `(B, T)`, true on the trained tokens. Values off the mask have no effect.
        tau: probability from which a token counts as mastered; above 1 none does.
        sigma: target entropy, in nats per token.

    Returns:
        `(B, T)` bool, true on the dropped tokens.

    Raises:
        ValueError: an option is out of its bounds.
    """
    check_arguments(dmmpt_mask, tau=tau, sigma=sigma)
    mask, dtype = mask.bool(), torch.promote_types(log_probs.dtype, torch.float32)
    right = rewards + rounding_error(rewards) >= 1
    mastered = log_probs.detach().to(dtype).exp() >= tau
    total = entropies.detach().to(dtype).masked_fill(~mask, 0.0).sum(dim=1)
    certain = total / mask.sum(dim=1).clamp(min=1) < sigma
    return mask & mastered & (right & certain).unsqueeze(1)

"""TEA, a token-wise entropy-adaptive bonus (https://huggingface.co/papers/2508.03178)."""

from collections.abc import Callable

import torch
from torch import Tensor

from canon_trl.options import NotNegative, check_arguments
from canon_trl.paper import Paper
from canon_trl.tokens import token_mean

PAPER = Paper(
    key="wang2025lightif",
    title="Light-IF: Endowing LLMs with Generalizable Reasoning via Preview and Self-Checking for Complex Instruction "
    "Following",
    authors="Chenyang Wang and Liang Wen and Shousheng Jia and Xiangzheng Zhang and Liang Xu",
    id="2508.03178",
    code="Qihoo360/Light-IF",
)


def tea_coefficients(
    log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    mean: Callable[[Tensor, Tensor], Tensor] = token_mean,
    *,
    scale: NotNegative = 10.0,
    most: NotNegative = 5.0,
) -> Tensor:
    """Return the weight of each token's entropy bonus, see [`tea`].

    Args:
        log_probs: `(B, T)`, of the current policy.
        advantages: `(B, T)`, or `(B,)` for one advantage per response.
        mask: `(B, T)`, true on the trained tokens. Values off the mask have no effect.
        mean: takes the mean of `(B, T)` values over the tokens in a mask; in training
            [`~canon_trl.tokens.Tokens.mean`], which covers all ranks.
        scale: sum of the coefficients of a response, before the cap.
        most: cap of a coefficient.

    Returns:
        `(B, T)`, in at least float32, without gradient; 0 off the mask.

    Raises:
        ValueError: an option is out of its bounds.
    """
    check_arguments(tea_coefficients, scale=scale, most=most)
    mask, dtype = mask.bool(), torch.promote_types(log_probs.dtype, torch.float32)
    log_probs = log_probs.detach().to(dtype).masked_fill(~mask, 0.0)
    advantages = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
    advantages = advantages.detach().to(dtype).expand(mask.shape).masked_fill(~mask, 0.0)
    covariance = (advantages - mean(advantages, mask)) * (log_probs - mean(log_probs, mask))
    shares = covariance.masked_fill(~mask, -torch.inf).softmax(dim=1)
    return (scale * shares).clamp(max=most).masked_fill(~mask, 0.0)


def tea(
    log_probs: Tensor,
    entropies: Tensor,
    advantages: Tensor,
    mask: Tensor,
    mean: Callable[[Tensor, Tensor], Tensor] = token_mean,
    *,
    scale: NotNegative = 10.0,
    most: NotNegative = 5.0,
) -> Tensor:
    """Raise the entropy at the tokens whose update would lower it most: those with a large covariance.

        cov_t  = (A_t - mean(A)) * (lp_t - mean(lp))           means over all trained tokens
        coef_t = min(scale * softmax_t(cov), most)             softmax over the response; no gradient
        loss  += -coef_t * H_t                                 aggregated like the loss

    The coefficients of a response sum to `scale` before the cap, so those of a long response are small; if all
    advantages are equal, each is scale / length.

    The formula follows a function in the authors' code, which its training loop never reaches with the default loss;
    the term enters the loss as in the paper. In the code a gradient also flows through lp in coef_t; here none does.
    The means there are over a micro-batch of one rank, here over all ranks. The authors' script uses the token mean,
    ratios clipped at 1 on both sides and a KL weight of 0.001.

    Use it to counter a fall of entropy at the few tokens that cause it. A bonus on all tokens, TRL's `entropy_coef`,
    is simpler.

    Args:
        log_probs, advantages, mask, mean, scale, most: see [`tea_coefficients`].
        entropies: `(B, T)`, in nats, of the current policy, with gradient.

    Returns:
        `(B, T)`, in at least float32; 0 off the mask.
    """
    coefficients = tea_coefficients(log_probs, advantages, mask, mean, scale=scale, most=most)
    return -coefficients * entropies.masked_fill(~mask.bool(), 0.0)

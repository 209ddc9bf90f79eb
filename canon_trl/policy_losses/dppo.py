"""DPPO, divergence proximal policy optimisation (https://huggingface.co/papers/2602.04879)."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from canon_trl.options import check_arguments
from canon_trl.paper import Paper

PAPER = Paper(
    key="qi2026rethinking",
    title="Rethinking the Trust Region in LLM Reinforcement Learning",
    authors="Penghui Qi and Xiangxin Zhou and Zichen Liu and Tianyu Pang and Chao Du and Min Lin and Wee Sun Lee",
    id="2602.04879",
    code="sail-sg/Stable-RL",
)

Bound = Annotated[float, "[0, inf]"]
Cap = Annotated[float, "[1, inf]"]
Divergence = Literal["tv", "kl"]


def dppo_weights(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    divergence: Divergence = "tv",
    low: Bound = 0.2,
    high: Bound = 0.2,
    cap: Cap = 20.0,
) -> Tensor:
    """Return the factor on each advantage: 0 where `dppo` drops the token, else min(1, cap / ratio).

    With it, the gradient of A * ratio, unclipped, is that of A * [min(ratio, cap)] * lp for the tokens that are kept.

    Args:
        log_probs, old_log_probs: `(B, T)`, current and at sampling time.
        advantages: `(B, T)`, or `(B,)` for one advantage per response.
        divergence: total variation, or the Kullback-Leibler divergence.
        low, high: how far a probability may fall and rise; in nats for "kl". With infinite ones no token is dropped.
        cap: largest ratio that weights a gradient.

    Returns:
        `(B, T)`, in at least float32, without gradient.

    Raises:
        ValueError: an option is out of its bounds.
    """
    check_arguments(dppo_weights, divergence=divergence, low=low, high=high, cap=cap)
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    log_probs, old_log_probs = log_probs.detach().to(dtype), old_log_probs.detach().to(dtype)
    now, before = log_probs.exp(), old_log_probs.exp()
    if divergence == "tv":
        too_high, too_low = now - before > high, before - now > low
    else:
        others = torch.log((1 - before + 1e-8) / (1 - now + 1e-8))
        moved = before * (old_log_probs - log_probs) + (1 - before) * others
        too_high, too_low = (now > before) & (moved > high), (now < before) & (moved > low)
    advantages = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
    log_ratio = log_probs - old_log_probs
    capped = (log_ratio.clamp(max=math.log(cap)) - log_ratio).exp()
    return capped.masked_fill(torch.where(advantages > 0, too_high, too_low), 0.0)


def dppo(
    log_probs: Tensor,
    old_log_probs: Tensor,
    sampling_log_probs: Tensor,
    advantages: Tensor,
    *,
    divergence: Divergence = "tv",
    low: Bound = 0.2,
    high: Bound = 0.2,
    cap: Cap = 20.0,
) -> Tensor:
    """Drop a token whose probability has moved too far in the direction of its advantage; clip no ratio.

        p = exp(lp), q = exp(old), ratio = p / q
        tv    dropped where p - q > high, for A > 0
              dropped where q - p > low, for other A
        kl    dropped where p > q and k > high, for A > 0
              dropped where p < q and k > low, for other A
              k = q * (old - lp) + (1 - q) * ln((1 - q + 1e-8) / (1 - p + 1e-8))
        loss_t = -A_t * [min(ratio_t, cap)] * lp_t      of the others; no gradient through [ ]

    The ratio is noisy for unlikely tokens, so PPO's clip holds them back, and it lets likely ones move far. Both
    divergences compare the sampled token with all other tokens taken together, the paper's binary forms; its forms
    over the likeliest tokens are not implemented. A dropped token has no loss, but the divisor counts it.

    q is the probability that the sampler reported, as in the paper, if there is one (with vLLM), else TRL's own. TRL
    multiplies the loss by the truncated ratio of the two, which makes the whole ratio p / q. Without vLLM, the first
    update on a rollout drops nothing.

    The formula follows verl, to which the authors' repository links; its own code has the same masks and a cap of 10.
    The paper's large runs (Appendix E) have bounds of 0.2 for "tv" and 0.05 for "kl", and a cap of 5; verl's example
    has 0.15 for "tv", 0.05 for "kl", and a cap of 10,000. With infinite bounds and cap, this is the plain policy
    gradient, weighted by the ratio.

    Use it with several updates per rollout and large vocabularies, where PPO's clip stops unlikely tokens early. With
    one update per rollout and no vLLM it changes nothing.

    Args:
        log_probs, old_log_probs: see [`dppo_weights`].
        sampling_log_probs: `(B, T)`, NaN where the sampler reported none.
        advantages, divergence, low, high, cap: see [`dppo_weights`].

    Returns:
        The advantages, `(B, T)`, times [`dppo_weights`].
    """
    old_log_probs = torch.where(sampling_log_probs.isnan(), old_log_probs, sampling_log_probs)
    options: dict[str, Any] = {"divergence": divergence, "low": low, "high": high, "cap": cap}
    return advantages * dppo_weights(log_probs, old_log_probs, advantages, **options)


def dppo_report(
    log_probs: Tensor,
    old_log_probs: Tensor,
    sampling_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    mean: Callable[[Tensor, Tensor], Tensor],
    **options: Any,
) -> dict[str, Tensor]:
    """Report the share of the tokens that are dropped."""
    left = dppo(log_probs, old_log_probs, sampling_log_probs, advantages, **options)
    return {"frac_gated": mean(((left == 0) & (advantages != 0)).float(), mask)}

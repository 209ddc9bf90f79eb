"""Clip-Cov and KL-Cov hold back the few tokens that drive entropy down (https://huggingface.co/papers/2505.22617).

In a policy-gradient step, the covariance of log-probability and advantage governs the change of entropy (Sec. 3.2). It
is very uneven: a small share of the tokens carries nearly all of it (Table 1). So the methods treat only those tokens
and leave the others as they are.

    cov_t = (A_t - mean(A)) * (lp_t - mean(lp))

    Clip-Cov   a few tokens with low < cov_t < high lose their gradient    Eq. 10-12
    KL-Cov     those with the largest cov_t pay coef * |lp_t - old_t|,     Eq. 13-14
               and no ratio is clipped

The means are over the valid tokens, and the covariances are detached.

Shapes: B responses, T tokens. `log_probs` and `old_log_probs` are `(B, T)`, natural logarithms of the sampled tokens'
probabilities now and at sampling time; `advantages` is `(B, T)`, or `(B,)` for one advantage per response; `mask` is
`(B, T)`, true on the trained tokens. Values off the mask have no effect, not even NaN.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from canon_trl.options import Share
from canon_trl.paper import Paper
from canon_trl.policy_losses.covariance_over_ranks import (
    Placement,
    Statistics,
    at_least_one,
    clip_cov_candidates,
    clip_cov_over_ranks,
    covariance_over_ranks,
    kl_cov_over_ranks,
)
from canon_trl.selection import Search, alone, largest, together
from canon_trl.tokens import Scope, Tokens

PAPER = Paper(
    key="cui2025entropy",
    title="The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
    authors="Ganqu Cui and Yuchen Zhang and Jiacheng Chen and Lifan Yuan and Zhi Wang and Yuxin Zuo and Haozhan Li "
    "and Yuchen Fan and Huayu Chen and Weize Chen and Zhiyuan Liu and Hao Peng and Lei Bai and Wanli Ouyang and "
    "Yu Cheng and Bowen Zhou and Ning Ding",
    id="2505.22617",
    code="PRIME-RL/Entropy-Mechanism-of-RL",
)

Within = Callable[[Scope], tuple[Tokens, slice]]
Choice = tuple[Tensor, Statistics]


def token_covariance(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Return each token's part of the covariance of advantage and log-probability, `(B, T)` in at least float32.

    cov_t = (A_t - mean(A)) * (lp_t - mean(lp)), in nats times the unit of the advantage; 0 off the mask.
    """
    covariance: Tensor
    ((covariance, _),) = together(alone, covariance_over_ranks(log_probs, advantages, mask))
    return covariance


def clip_cov_mask(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    epsilon_low: float,
    epsilon_high: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Select the tokens to which Clip-Cov gives no gradient, `(B, T)` bool (Eq. 11).

    Candidates have low < cov_t < high, strictly, and PPO does not already clip them. Of these, it draws
    max(1, floor(ratio * n)) at random, or all if there are fewer; n is the number of valid tokens.

    Args:
        ratio: share of the valid tokens to select.
        low, high: bounds of the covariance. As in the paper, `high` excludes the very largest.
        epsilon_low, epsilon_high: PPO clips a ratio below 1 - epsilon_low where the advantage is negative, and above
            1 + epsilon_high where it is positive.
        generator: for the random choice, on the device of `log_probs`.
    """
    mask = mask.bool()
    covariance = token_covariance(log_probs, advantages, mask)
    clip = (epsilon_low, epsilon_high)
    candidates = clip_cov_candidates(covariance, log_probs - old_log_probs, advantages, mask, (low, high), clip)
    drawn = torch.rand(mask.shape, generator=generator, device=mask.device)
    return select_largest(drawn, candidates, at_least_one(ratio, mask.sum()))


def kl_cov_mask(log_probs: Tensor, advantages: Tensor, mask: Tensor, *, fraction: float = 0.002) -> Tensor:
    """Select the tokens that KL-Cov penalises, `(B, T)` bool (Eq. 13).

    They are the max(1, floor(fraction * n)) of the n valid tokens with the largest covariance; ties go to the earlier
    token. The authors' code states the share in percent (0.2 for 7B, 0.02 for 32B) and caps that number at the count
    of valid tokens, which matters only in tiny batches; here it is a fraction without a cap.
    """
    mask = mask.bool()
    covariance = token_covariance(log_probs, advantages, mask)
    return select_largest(covariance, mask, at_least_one(fraction, mask.sum()))


def select_largest(values: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """Mark the `count` largest `values` where `among` is true; ties go to the earlier token."""
    order = torch.arange(among.numel(), device=among.device).view(among.shape)
    chosen: Tensor
    (((chosen,), _),) = together(alone, largest(values, among, count.view(1), order, below=among.numel()))
    return chosen


def clip_cov(
    advantages: Tensor,
    within: Within,
    *,
    ratio: Share = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    scope: Scope = "micro_batch",
) -> Tensor:
    """Set the advantages of a few tokens with high covariance to 0, so that they have no loss and no gradient.

    The divisors of the loss do not change. The trainer's `epsilon` and `epsilon_high` decide which tokens PPO clips;
    the authors' scripts set both to 1, which allows ratios in [0, 2], so that PPO's clip does not do Clip-Cov's work.

    Args:
        ratio, low, high: see [`clip_cov_mask`].
        scope: the tokens that the means cover and the selection is made from; see `canon_trl.policy_losses`.

    Returns:
        The advantages, `(B, T)`.
    """
    (selected, _), rows = clip_cov_choice(within, ratio, low, high, scope)
    return advantages.masked_fill(selected[rows], 0.0)


def clip_cov_report(within: Within, *, ratio: float, low: float, high: float, scope: Scope) -> Statistics:
    (_, statistics), rows = clip_cov_choice(within, ratio, low, high, scope)
    return {} if rows.start else statistics  # once for all micro-batches that share the choice


def clip_cov_choice(within: Within, ratio: float, low: float, high: float, scope: Scope) -> tuple[Choice, slice]:
    """Return the choice of [`clip_cov_over_ranks`] and the micro-batch's rows in it."""
    if not low < high:
        raise ValueError(f"low={low!r} must be less than high={high!r}")
    tokens, rows = within(scope)

    def search() -> Search[Choice]:
        return clip_cov_over_ranks(
            tokens.log_probs,
            tokens.old_log_probs,
            tokens.advantages,
            tokens.mask,
            placement(tokens),
            clip=tokens.clip,
            ratio=ratio,
            low=low,
            high=high,
        )

    return tokens.once(("clip_cov", ratio, low, high), search), rows


def kl_cov(
    log_probs: Tensor,
    old_log_probs: Tensor,
    within: Within,
    *,
    fraction: Share = 0.002,
    coef: Annotated[float, "[0, inf)"] = 1.0,
    scope: Scope = "micro_batch",
) -> Tensor:
    """Penalise the tokens with the largest covariance by coef * |lp - old|, and clip no ratio.

        loss_t = -A_t * exp(lp_t - old_t) + coef * |lp_t - old_t|

    With one update per rollout, lp equals old, so the penalty has no gradient: this is the plain policy gradient.

    Args:
        fraction: see [`kl_cov_mask`].
        coef: weight of the penalty; 1 in the paper, 0.1 in verl's configuration.
        scope: see [`clip_cov`].

    Returns:
        The penalty, `(B, T)`; 0 for all other tokens.
    """
    (selected, _), rows = kl_cov_choice(within, fraction, scope)
    return coef * torch.where(selected[rows], log_probs - old_log_probs, 0.0).abs()


def kl_cov_report(within: Within, *, fraction: float, coef: float, scope: Scope) -> Statistics:
    (_, statistics), rows = kl_cov_choice(within, fraction, scope)
    return {} if rows.start else statistics


def kl_cov_choice(within: Within, fraction: float, scope: Scope) -> tuple[Choice, slice]:
    """Return the choice of [`kl_cov_over_ranks`] and the micro-batch's rows in it."""
    tokens, rows = within(scope)

    def search() -> Search[Choice]:
        return kl_cov_over_ranks(
            tokens.log_probs, tokens.advantages, tokens.mask, placement(tokens), fraction=fraction
        )

    return tokens.once(("kl_cov", fraction), search), rows


def placement(tokens: Tokens) -> Placement:
    """Return the tokens' positions in the rollout and the seed of the random choice."""
    return Placement(
        response=tokens.response,
        responses=tokens.responses,
        width=tokens.width,
        seed=tokens.seed,
        step=tokens.micro_step,
    )

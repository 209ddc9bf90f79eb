"""Clip-Cov and KL-Cov: the few tokens that drive entropy down are held back
(https://huggingface.co/papers/2505.22617).

The change of entropy in a policy-gradient step is governed by the covariance of log-probability and advantage (Sec.
3.2). It is very uneven: a small share of the tokens carries nearly all of it (Table 1). So only those are treated, the
others learn as they would have.

    cov_t = (A_t - mean(A)) * (lp_t - mean(lp))

    Clip-Cov   a few tokens with low < cov_t < high lose their gradient    Eq. 10-12
    KL-Cov     those with the largest cov_t pay coef * |lp_t - old_t|,     Eq. 13-14
               and no ratio is clipped

The means are over the valid tokens, and no gradient goes through any of it.

Shapes: B responses, T tokens. `log_probs` and `old_log_probs` are `(B, T)`, natural logarithms of the sampled tokens'
probabilities now and at the time of sampling; `advantages` is `(B, T)`, or `(B,)` for all tokens of a response alike;
`mask` is `(B, T)`, true on the tokens that are trained on. What lies under the mask never counts, whatever it is.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from canon_trl.options import Share
from canon_trl.paper import Paper
from canon_trl.policy_losses.covariance_over_ranks import (
    Among,
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
    """Each token's part in the covariance of advantage and log-probability, `(B, T)` in at least float32; 0 off mask.

    cov_t = (A_t - mean(A)) * (lp_t - mean(lp)), in nats times the unit of the advantage.
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
    """Clip-Cov: the tokens that lose their gradient, `(B, T)` bool (Eq. 11).

    Candidates have low < cov_t < high, strictly, and are not clipped by PPO already. Of them max(1, floor(ratio * n))
    are drawn at random, n being the number of valid tokens; all of them if they are fewer.

    Args:
        ratio: share of the valid tokens that are cut.
        low, high: the bounds of the covariance; a high bound leaves the very largest alone, as the authors do.
        epsilon_low, epsilon_high: PPO clips a ratio below 1 - epsilon_low where the advantage is negative and one
            above 1 + epsilon_high where it is positive.
        generator: of the random choice, on the device of `log_probs`.
    """
    mask = mask.bool()
    covariance = token_covariance(log_probs, advantages, mask)
    clip = (epsilon_low, epsilon_high)
    candidates = clip_cov_candidates(covariance, log_probs - old_log_probs, advantages, mask, (low, high), clip)
    drawn = torch.rand(mask.shape, generator=generator, device=mask.device)
    return largest_of_one_rank(drawn, candidates, at_least_one(ratio, mask.sum()))


def kl_cov_mask(log_probs: Tensor, advantages: Tensor, mask: Tensor, *, fraction: float = 0.002) -> Tensor:
    """KL-Cov: the tokens that pay for moving, `(B, T)` bool (Eq. 13): the max(1, floor(fraction * n)) with the largest
    covariance of the n valid ones; of equal ones the first.

    The authors' code states the share in percent (0.2 for 7B, 0.02 for 32B) and caps that number at the count of valid
    tokens, which acts in tiny batches only; here it is a fraction without a cap.
    """
    mask = mask.bool()
    covariance = token_covariance(log_probs, advantages, mask)
    return largest_of_one_rank(covariance, mask, at_least_one(fraction, mask.sum()))


def largest_of_one_rank(values: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """The `count` largest of those `values` that `among` marks, as a bool tensor; of equal ones the first."""
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
    """Clip-Cov as a token advantage, `(B, T)`: 0 for the selected tokens, so that they have neither loss nor gradient.

    Every divisor of the loss stays. The trainer's `epsilon` and `epsilon_high` say which tokens PPO clips; the
    authors' scripts widen them to ratios in [0, 2], 1 and 1, so that the ordinary clip leaves the work to this one.

    Args:
        ratio, low, high: see [`clip_cov_mask`].
        scope: the tokens over which the means are taken and the choice is made, see the package's docstring.
    """
    (selected, _), rows = clip_cov_choice(within, ratio, low, high, scope)
    return advantages.masked_fill(selected[rows], 0.0)


def clip_cov_report(within: Within, *, ratio: float, low: float, high: float, scope: Scope) -> Statistics:
    (_, statistics), rows = clip_cov_choice(within, ratio, low, high, scope)
    return {} if rows.start else statistics  # once for all micro-batches that it was made for


def clip_cov_choice(within: Within, ratio: float, low: float, high: float, scope: Scope) -> tuple[Choice, slice]:
    """The choice of [`clip_cov_over_ranks`], and which of its rows are those of the micro-batch."""
    if not low < high:
        raise ValueError(f"low={low!r} must be less than high={high!r}")
    tokens, rows = within(scope)

    def search() -> Search[Choice]:
        return clip_cov_over_ranks(
            tokens.log_probs,
            tokens.old_log_probs,
            tokens.advantages,
            tokens.mask,
            place_of(tokens),
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
    """KL-Cov as a loss term, `(B, T)`: coef * |lp - old| for the selected tokens, while no ratio is clipped.

        loss_t = -A_t * exp(lp_t - old_t) + coef * |lp_t - old_t|

    With one update per rollout lp equals old, the penalty has no slope and this is the plain policy gradient.

    Args:
        fraction: see [`kl_cov_mask`].
        coef: weight of the penalty; 1 in the paper, 0.1 in verl's configuration.
        scope: as for [`clip_cov`].
    """
    (selected, _), rows = kl_cov_choice(within, fraction, scope)
    return coef * torch.where(selected[rows], log_probs - old_log_probs, 0.0).abs()


def kl_cov_report(within: Within, *, fraction: float, coef: float, scope: Scope) -> Statistics:
    (_, statistics), rows = kl_cov_choice(within, fraction, scope)
    return {} if rows.start else statistics


def kl_cov_choice(within: Within, fraction: float, scope: Scope) -> tuple[Choice, slice]:
    """The choice of [`kl_cov_over_ranks`], and which of its rows are those of the micro-batch."""
    tokens, rows = within(scope)

    def search() -> Search[Choice]:
        seen = (tokens.log_probs, tokens.advantages, tokens.mask)
        return kl_cov_over_ranks(*seen, place_of(tokens), fraction=fraction)

    return tokens.once(("kl_cov", fraction), search), rows


def place_of(tokens: Tokens) -> Among:
    """Where the tokens stand among those of all ranks, and which draw this is."""
    return Among(
        response=tokens.response,
        responses=tokens.responses,
        width=tokens.width,
        seed=tokens.seed,
        step=tokens.micro_step,
    )

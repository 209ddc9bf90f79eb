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

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

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

PAPER = Paper(
    key="cui2025entropy",
    title="The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
    authors="Ganqu Cui and Yuchen Zhang and Jiacheng Chen and Lifan Yuan and Zhi Wang and Yuxin Zuo and Haozhan Li "
    "and Yuchen Fan and Huayu Chen and Weize Chen and Zhiyuan Liu and Hao Peng and Lei Bai and Wanli Ouyang and "
    "Yu Cheng and Bowen Zhou and Ning Ding",
    id="2505.22617",
)

Scope = Literal["micro_batch", "batch"]


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


@dataclass(frozen=True, kw_only=True)
class ClipCov:
    """Clip-Cov as a policy loss: PPO's, in which the selected tokens have no part while every divisor stays.

    Args:
        epsilon_low, epsilon_high: PPO's clip; the trainer's `epsilon` and `epsilon_high`. The authors' scripts widen
            it to ratios in [0, 2], 1 and 1, so that the ordinary clip leaves the work to this one.
        ratio, low, high: see [`clip_cov_mask`].
        scope: the tokens over which the means are taken and the choice is made, see the package's docstring.

    Raises:
        ValueError: a value is out of range.
    """

    epsilon_low: float
    epsilon_high: float
    ratio: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    scope: Scope = "micro_batch"

    clips_ratios: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("ratio", self.ratio)
        check_scope(self.scope)
        if not self.low < self.high:
            raise ValueError(f"low={self.low!r} must be less than high={self.high!r}")

    def select(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, generator: torch.Generator
    ) -> Tensor:
        return clip_cov_mask(
            log_probs,
            old_log_probs,
            advantages,
            mask,
            ratio=self.ratio,
            low=self.low,
            high=self.high,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            generator=generator,
        )

    def select_over_ranks(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, among: Among
    ) -> Search[tuple[Tensor, Statistics]]:
        return clip_cov_over_ranks(
            log_probs,
            old_log_probs,
            advantages,
            mask,
            among,
            ratio=self.ratio,
            low=self.low,
            high=self.high,
            clip=(self.epsilon_low, self.epsilon_high),
        )

    def advantages(self, selected: Tensor, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        """`(B, T)`: 0 for the selected tokens, so that neither their loss nor their gradient is left."""
        return advantages.masked_fill(selected, 0.0)


@dataclass(frozen=True, kw_only=True)
class KLCov:
    """KL-Cov as a policy loss: no ratio is clipped, and the selected tokens pay coef * |lp - old| in addition.

        loss_t = -A_t * exp(lp_t - old_t) + coef * |lp_t - old_t|

    for the selected tokens, without the second term for the others. With one update a rollout lp equals old, the
    penalty has no slope and this is the plain policy gradient.

    Args:
        fraction: see [`kl_cov_mask`].
        coef: weight of the penalty, at least 0; 1 in the paper, 0.1 in verl's configuration.
        scope: as for [`ClipCov`].

    Raises:
        ValueError: a value is out of range.
    """

    fraction: float = 0.002
    coef: float = 1.0
    scope: Scope = "micro_batch"

    clips_ratios: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("fraction", self.fraction)
        check_scope(self.scope)
        if not 0 <= self.coef < math.inf:
            raise ValueError(f"coef={self.coef!r} must be finite and at least 0")

    def select(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, generator: torch.Generator
    ) -> Tensor:
        return kl_cov_mask(log_probs, advantages, mask, fraction=self.fraction)

    def select_over_ranks(
        self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, among: Among
    ) -> Search[tuple[Tensor, Statistics]]:
        return kl_cov_over_ranks(log_probs, advantages, mask, among, fraction=self.fraction)

    def advantages(self, selected: Tensor, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        """`(B, T)`: A - coef * |lp - old| / ratio for the selected tokens, with its gradient.

        Times the ratio, which the policy loss multiplies by, that is the penalty: it gets every weight and divisor
        that the policy loss has, and none of them is written twice.
        """
        log_ratio = torch.where(selected, log_probs - old_log_probs, 0.0)  # of no other token, lest it overflow
        return advantages - self.coef * log_ratio.abs() * (-log_ratio).exp()


def check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name}={value!r} must lie in (0, 1]; it is a share, not a percentage")


def check_scope(scope: str) -> None:
    if scope not in ("micro_batch", "batch"):
        raise ValueError(f"scope={scope!r} must be 'micro_batch' or 'batch'")

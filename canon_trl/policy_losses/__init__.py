"""Policy losses: what becomes of single tokens between the advantage and its gradient.

A policy loss selects tokens and says what their advantage is in the loss; the loss itself, with its clipping, its
weights and its divisors, stays TRL's. [`POLICY_LOSSES`] names them for the config. Each has a `scope`:

    "micro_batch"    the tokens of one forward and backward pass on all ranks, with the log-probabilities of that very
                     pass, as the reference implementations have it. How a batch is cut into micro-batches then
                     matters.
    "batch"          the tokens of one optimiser step on all ranks, however they are cut. The log-probabilities are
                     those of the rollout, which need no further pass; they are the current ones at the first update
                     on a rollout and older ones later. So no token counts as clipped by its ratio beforehand.
"""

import inspect
from typing import Any

from canon_trl.policy_losses.astar_po import astar_po_loss
from canon_trl.policy_losses.covariance import (
    ClipCov,
    KLCov,
    clip_cov_mask,
    kl_cov_mask,
    token_covariance,
)
from canon_trl.policy_losses.covariance_over_ranks import Among, covariance_statistics
from canon_trl.policy_losses.disco import disco_loss

PolicyLoss = ClipCov | KLCov

POLICY_LOSSES: dict[str, type[PolicyLoss]] = {"clip_cov": ClipCov, "kl_cov": KLCov}


def get_policy_loss(name: str, options: dict[str, Any], *, epsilon_low: float, epsilon_high: float) -> PolicyLoss:
    """The policy loss of that name with its options.

    Raises:
        ValueError: there is none, or it does not take an option or its value.
    """
    if name not in POLICY_LOSSES:
        raise ValueError(f"policy_loss={name!r} is unknown; choose one of {sorted(POLICY_LOSSES)}")
    policy_loss = POLICY_LOSSES[name]
    clip: dict[str, Any] = (
        {"epsilon_low": epsilon_low, "epsilon_high": epsilon_high} if policy_loss.clips_ratios else {}
    )
    known = sorted(set(inspect.signature(policy_loss).parameters) - clip.keys())
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"policy_loss_kwargs has {unknown}, which {name!r} does not take; it takes {known}")
    try:
        return policy_loss(**clip, **options)
    except ValueError as error:
        raise ValueError(f"policy_loss_kwargs: {error}") from None


__all__ = [
    "POLICY_LOSSES",
    "Among",
    "ClipCov",
    "KLCov",
    "PolicyLoss",
    "astar_po_loss",
    "clip_cov_mask",
    "covariance_statistics",
    "disco_loss",
    "get_policy_loss",
    "kl_cov_mask",
    "token_covariance",
]

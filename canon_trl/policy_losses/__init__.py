"""Policy losses: TRL's loss with one part replaced or added ([`OnTRL`]), or another loss instead ([`Whole`]).

[`POLICY_LOSSES`] lists them by the names that the config uses. A loss that keeps TRL's weights and divisors also keeps
TRL's code. Losses that select tokens have a `scope`:

    "micro_batch"    selects among the tokens of one forward and backward pass on all ranks, with the log-probabilities
                     of that pass, as the reference implementations do. The result depends on how a batch is split into
                     micro-batches.
    "batch"          selects among the tokens of one optimiser step on all ranks, however they are split. It uses the
                     log-probabilities of the rollout, which need no extra pass; they are current at the first update
                     on a rollout and stale at later ones. So no token counts as already clipped by its ratio.
"""

from typing import TYPE_CHECKING, Any

from canon_trl.imports import moved
from canon_trl.method import Stage, by_name
from canon_trl.policy_losses.astar_po import astar_po_loss
from canon_trl.policy_losses.covariance import (
    clip_cov,
    clip_cov_mask,
    clip_cov_report,
    kl_cov,
    kl_cov_mask,
    kl_cov_report,
    token_covariance,
)
from canon_trl.policy_losses.covariance_over_ranks import covariance_statistics
from canon_trl.policy_losses.disco import disco_loss
from canon_trl.policy_losses.dppo import dppo, dppo_report, dppo_weights
from canon_trl.policy_losses.kinds import OnTRL, Whole
from canon_trl.policy_losses.up import up, up_weights
from canon_trl.tokens import READABLE

POLICY_LOSSES: dict[str, Any] = by_name(
    OnTRL("clip_cov", clip_cov, part="token_advantage", reports=clip_cov_report),
    OnTRL("kl_cov", kl_cov, part="loss_term", clips=False, acts_on_change=True, reports=kl_cov_report),
    OnTRL("dppo", dppo, clips=False, acts_on_change=True, reports=dppo_report),
    OnTRL("up", up, clips_high=False, acts_on_change=True),
    Whole("disco", disco_loss, renamed={"rewards": "prompt_rewards"}, whole_groups=True, reward_range="{0, 1}"),
)

STAGE = Stage("policy_loss", POLICY_LOSSES, READABLE, called_in="hook/token_stages.py")

if not TYPE_CHECKING:
    __getattr__ = moved(
        __name__,
        {
            "ClipCov": "POLICY_LOSSES['clip_cov'].with_options({...}, where='policy_loss: ')",
            "KLCov": "POLICY_LOSSES['kl_cov'].with_options({...}, where='policy_loss: ')",
            "PolicyLoss": "OnTRL and Whole",
            "get_policy_loss": "canon_trl.method.find(STAGE, spec)",
        },
    )

__all__ = [
    "POLICY_LOSSES",
    "STAGE",
    "OnTRL",
    "Whole",
    "astar_po_loss",
    "clip_cov",
    "clip_cov_mask",
    "covariance_statistics",
    "disco_loss",
    "dppo",
    "dppo_weights",
    "kl_cov",
    "kl_cov_mask",
    "token_covariance",
    "up",
    "up_weights",
]

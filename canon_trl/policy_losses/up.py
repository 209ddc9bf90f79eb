"""UP, unbounded positive asymmetric optimisation (https://huggingface.co/papers/2607.06987)."""

import torch
from torch import Tensor

from canon_trl.paper import Paper

PAPER = Paper(
    key="fan2026up",
    title="UP: Unbounded Positive Asymmetric Optimization for Breaking the Exploration-Stability Dilemma",
    authors="Chongyu Fan and Pengfei Liu and Jingjia Huang and Sijia Liu and Yi Lin",
    id="2607.06987",
)


def up_weights(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Return the factor on each advantage that turns PPO's loss into UP: exp(old - lp) where A > 0, else 1.

    Args:
        log_probs, old_log_probs: `(B, T)`, current and at sampling time.
        advantages: `(B, T)`, or `(B,)` for one advantage per response.

    Returns:
        `(B, T)`, in at least float32, without gradient.
    """
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    inverse = (old_log_probs.detach().to(dtype) - log_probs.detach().to(dtype)).exp()
    advantages = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
    return torch.where(advantages > 0, inverse, 1.0)


def up(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Reinforce tokens with positive advantages without ratio and clip; keep PPO's loss for the others (Eq. 14).

        loss_t = -A_t * exp(lp_t - [lp_t])                                  for A_t > 0; no gradient through [ ]
        loss_t = -min(ratio_t * A_t, max(ratio_t, 1 - epsilon) * A_t)       for other A_t, ratio = exp(lp - old)

    PPO's clip removes the gradient of a right but unlikely token as soon as its ratio exceeds the bound, although it
    has the most probability to gain. Here such a token always has the gradient of REINFORCE, A_t * grad(lp_t), however
    stale the rollout is. `epsilon` restrains the tokens that are pushed down; no ratio is clipped from above, so
    `epsilon_high` is unused.

    We read the formula in pull requests to TRL (6579) and verl (7022), not in the paper itself. The latter (Eq. 15)
    also caps the ratio of tokens that are pushed down (dual clip); here the config rejects `delta`. UP-GSPO, with a
    ratio per response, is not implemented. The paper's UP-DAPO divides by all tokens, `loss_type: dapo`. With vLLM,
    TRL's correction for the sampler still multiplies the loss.

    Use it with several updates per rollout, if rare right answers should grow fast. Nothing limits their growth, so
    keep the number of updates small.

    Args:
        log_probs, old_log_probs, advantages: see [`up_weights`].

    Returns:
        The advantages, `(B, T)`, times [`up_weights`].
    """
    return advantages * up_weights(log_probs, old_log_probs, advantages)

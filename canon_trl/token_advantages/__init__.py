"""Token advantages: functions that change the advantage of each token before the loss is computed.

Each is a pure function of `(B, T)` tensors in a separate file. [`TOKEN_ADVANTAGES`] lists them by the names that the
config uses. They run at every update, on the current policy, and what they return is detached. A function that chooses
the responses to train on runs once per rollout, on its rewards; see [`TokenAdvantage`].
"""

from canon_trl.method import Stage, by_name
from canon_trl.token_advantages.clip_b import clip_b_mask
from canon_trl.token_advantages.dmmpt import dmmpt_mask
from canon_trl.token_advantages.entropy_shaped import entropy_shaped
from canon_trl.token_advantages.kinds import TokenAdvantage
from canon_trl.token_advantages.zero_variance import zero_variance
from canon_trl.tokens import READABLE

TOKEN_ADVANTAGES = by_name(
    TokenAdvantage("entropy_shaped", entropy_shaped),
    TokenAdvantage("dmmpt", dmmpt_mask, kind="mask"),
    TokenAdvantage("clip_b", clip_b_mask, kind="mask"),
    TokenAdvantage("zero_variance", zero_variance, kind="responses"),
)

STAGE = Stage("token_advantage", TOKEN_ADVANTAGES, READABLE, called_in="hook/token_stages.py")

__all__ = [
    "STAGE",
    "TOKEN_ADVANTAGES",
    "TokenAdvantage",
    "clip_b_mask",
    "dmmpt_mask",
    "entropy_shaped",
    "zero_variance",
]

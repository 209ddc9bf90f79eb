"""Token advantages: what becomes of the advantage of each token before the loss is computed.

Each is a pure function of `(B, T)` tensors in a file of its own. [`TOKEN_ADVANTAGES`] names them for the config; they
see the policy as it is at every update, and no gradient goes through what they return.
"""

from canon_trl.method import Stage, by_name
from canon_trl.token_advantages.entropy_shaped import entropy_shaped
from canon_trl.token_advantages.kinds import TokenAdvantage
from canon_trl.tokens import READABLE

TOKEN_ADVANTAGES = by_name(TokenAdvantage("entropy_shaped", entropy_shaped))

STAGE = Stage("token_advantage", TOKEN_ADVANTAGES, READABLE, called_in="hook/token_stages.py")

__all__ = ["STAGE", "TOKEN_ADVANTAGES", "TokenAdvantage", "entropy_shaped"]

"""Loss terms: what is added to the loss, with its own gradient.

Each is a pure function of `(B, T)` tensors in a file of its own. [`LOSS_TERMS`] names them for the config. A term that
returns `(B, T)` is aggregated as the loss is; one that returns 0-d is its own mean.
"""

from canon_trl.loss_terms.ter import ter
from canon_trl.method import Method, Stage, by_name
from canon_trl.tokens import READABLE

LOSS_TERMS = by_name(Method("ter", ter))

STAGE = Stage("loss_term", LOSS_TERMS, READABLE, called_in="hook/token_stages.py")

__all__ = ["LOSS_TERMS", "STAGE", "ter"]

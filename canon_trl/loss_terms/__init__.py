"""Loss terms: terms added to the loss, each with its own gradient.

Each is a pure function of `(B, T)` tensors in a separate file. [`LOSS_TERMS`] lists them by the names that the config
uses. A term of shape `(B, T)` is aggregated like the loss; a 0-d term is added as it is, averaged over the
micro-batches of an optimiser step.
"""

from canon_trl.loss_terms.dads import dads, dads_weights
from canon_trl.loss_terms.tea import tea, tea_coefficients
from canon_trl.loss_terms.ter import ter
from canon_trl.method import Method, Stage, by_name
from canon_trl.tokens import READABLE

LOSS_TERMS = by_name(
    Method("ter", ter),
    Method("tea", tea),
    Method("dads", dads),
)

STAGE = Stage("loss_term", LOSS_TERMS, READABLE, called_in="hook/token_stages.py")

__all__ = ["LOSS_TERMS", "STAGE", "dads", "dads_weights", "tea", "tea_coefficients", "ter"]

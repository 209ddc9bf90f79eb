"""What a token advantage returns, which decides the order in which several are applied."""

from dataclasses import dataclass
from typing import Literal

from canon_trl.method import Method


@dataclass(frozen=True, eq=False)
class TokenAdvantage(Method):
    """A method of this stage. A function given by its import path or as an object is a `"shape"`.

    Args:
        kind: what the function returns, `(B, T)` each: a `"shape"` returns advantages, a `"weight"` returns factors
            for the advantages, a `"mask"` is true on the tokens to drop. List several in this order. A function of the
            kind `"responses"` reads the rewards of a rollout, `(P, G)`, and returns `(P, G)` or `(P, 1)` bool, true
            for the responses to train on; the others count neither in the loss nor in its divisors.
    """

    kind: Literal["shape", "weight", "mask", "responses"] = "shape"

"""What a token advantage returns, and so its place among others."""

from dataclasses import dataclass
from typing import Literal

from canon_trl.method import Method


@dataclass(frozen=True, eq=False)
class TokenAdvantage(Method):
    """A method of this stage. A function that is only given by its path or as itself is a `"shape"`.

    Args:
        kind: what the function returns, `(B, T)` each: as a `"shape"` the advantages, as a `"weight"` what they are
            multiplied by, as a `"mask"` true on the tokens that are dropped. Several are listed in this order.
    """

    kind: Literal["shape", "weight", "mask"] = "shape"

"""How a published policy loss differs from TRL's: by a part of it, or as a whole."""

from dataclasses import dataclass
from typing import Literal

from canon_trl.method import Method


@dataclass(frozen=True, eq=False)
class OnTRL(Method):
    """TRL's loss with one part of its own.

    Args:
        part: what the function is: a `"token_advantage"` takes the place of the advantages, a `"loss_term"` is added
            to the loss.
        clips: whether ratios are clipped as TRL clips them.
    """

    part: Literal["token_advantage", "loss_term"] = "token_advantage"
    clips: bool = True


@dataclass(frozen=True, eq=False)
class Whole(Method):
    """A loss that takes the place of TRL's.

    Args:
        whole_groups: whether all responses to a prompt must lie in one micro-batch of one rank.
    """

    whole_groups: bool = False

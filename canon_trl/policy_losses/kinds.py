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
        acts_on_change: whether it has no gradient before the first update on a rollout, so that one update per rollout
            leaves the plain policy gradient.
    """

    part: Literal["token_advantage", "loss_term"] = "token_advantage"
    clips: bool = True
    acts_on_change: bool = False


@dataclass(frozen=True, eq=False)
class Whole(Method):
    """A loss that takes the place of TRL's.

    Args:
        whole_groups: whether all responses to a prompt must lie in one micro-batch of one rank.
        evaluates: whether it is also the loss of evaluation, which else is TRL's.
    """

    whole_groups: bool = False
    evaluates: bool = False

"""The two kinds of policy loss: TRL's loss with one part changed, and a loss that replaces it."""

from dataclasses import dataclass
from typing import Literal

from canon_trl.method import Method


@dataclass(frozen=True, eq=False)
class OnTRL(Method):
    """TRL's loss with one part replaced or added.

    Args:
        part: what the function returns: a `"token_advantage"` replaces the advantages, a `"loss_term"` is added to the
            loss.
        clips: whether the loss clips ratios as TRL does.
        clips_high: whether it also clips those above 1.
        acts_on_change: whether the part changes nothing until the policy has changed since the rollout. With one
            update per rollout, only the plain policy gradient remains.
    """

    part: Literal["token_advantage", "loss_term"] = "token_advantage"
    clips: bool = True
    clips_high: bool = True
    acts_on_change: bool = False


@dataclass(frozen=True, eq=False)
class Whole(Method):
    """A loss that replaces TRL's.

    Args:
        whole_groups: whether all responses to a prompt must be in one micro-batch on one rank.
        evaluates: whether evaluation uses this loss too, instead of TRL's.
    """

    whole_groups: bool = False
    evaluates: bool = False

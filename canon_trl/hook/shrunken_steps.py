"""What a batch that dynamic sampling could not fill weighs in the loss: each response that is trained on, the same."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from canon_trl.config.checks import PER_TOKEN


def scale_for_left_out(trained: Iterable[Tensor], loss_type: str, accelerator: Accelerator) -> Tensor | float:
    """The factor by which the loss's divisor, a count of places, exceeds that of the places trained on, 0-d.

    Args:
        trained: which responses are, `(B,)` bool per micro-batch of the optimiser step.
        loss_type: TRL's.
        accelerator: gathers over the ranks.
    """
    if loss_type in PER_TOKEN:
        return 1.0
    places = torch.stack(list(trained))
    if loss_type == "bnpo":  # a mean over the tokens of each micro-batch
        places = places.any(dim=1)
    everyones = accelerator.gather(places.float().mean().unsqueeze(0)).mean()
    return torch.where(everyones > 0, 1 / everyones, 0.0)


PlaceInStep = Callable[[], tuple[Sequence[Mapping[str, Any]], int]]


class NoneLeftOut:
    """All places of every batch are trained on."""

    def factor(self, place_in_step: PlaceInStep) -> Tensor | float:
        """What the loss of a micro-batch in training is multiplied by.

        Args:
            place_in_step: gives the rollout's micro-batches of the optimiser step, and which of them it is.
        """
        return 1.0

    def scaled(self, loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
        """The loss to log of a micro-batch, after its backward pass."""
        return loss

    def restart(self) -> None:
        """Be as before the first micro-batch."""


class LeftOut(NoneLeftOut):
    """Makes up for the places left out of optimiser steps whose micro-batches come from one rollout.

    Args:
        loss_type: TRL's.
        accelerator: gathers over the ranks.
    """

    def __init__(self, loss_type: str, accelerator: Accelerator) -> None:
        self._loss_type = loss_type
        self._accelerator = accelerator

    def factor(self, place_in_step: PlaceInStep) -> Tensor | float:
        step_batch, position = place_in_step()
        if "trained" not in step_batch[position]:
            return 1.0
        trained = [inputs["trained"] for inputs in step_batch]
        return scale_for_left_out(trained, self._loss_type, self._accelerator)


class ShrunkenSteps(LeftOut):
    """Makes up for them where optimiser steps take micro-batches of several rollouts: scales the gradients.

    The factor of [`scale_for_left_out`] is that of the whole step, and known after its last rollout.
    """

    def __init__(self, loss_type: str, accelerator: Accelerator) -> None:
        super().__init__(loss_type, accelerator)
        self.restart()

    def restart(self) -> None:
        self._trained: list[Tensor] = []
        self._shrunken = False
        self._loss: Tensor | float = 0.0

    def factor(self, place_in_step: PlaceInStep) -> Tensor | float:
        step_batch, position = place_in_step()
        inputs = step_batch[position]
        everything = torch.ones_like(inputs["completion_mask"][:, 0], dtype=torch.bool)
        self._shrunken |= "trained" in inputs
        self._trained.append(inputs.get("trained", everything))
        return 1.0

    def scaled(self, loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
        """The same; the gradients of the step's last micro-batch are scaled."""
        if not self._accelerator.sync_gradients:
            self._loss = self._loss + loss
            return loss
        before, shrunken, trained = self._loss, self._shrunken, self._trained
        self.restart()
        if not shrunken:
            return loss
        factor = float(scale_for_left_out(trained, self._loss_type, self._accelerator))
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return factor * (before + loss) - before

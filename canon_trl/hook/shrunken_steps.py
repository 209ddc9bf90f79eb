"""What a batch that dynamic sampling could not fill weighs in the loss: each response that is trained on, the same."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from canon_trl.config.checks import PER_TOKEN


def places_over_trained(trained: Iterable[Tensor], loss_type: str, accelerator: Accelerator) -> Tensor | float:
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


class ShrunkenSteps:
    """Scales the gradients of optimiser steps that take micro-batches of several rollouts.

    The factor of [`places_over_trained`] is that of the whole step, and known after its last rollout.

    Args:
        loss_type: TRL's.
        accelerator: tells when a step is complete, and gathers over the ranks.
    """

    def __init__(self, loss_type: str, accelerator: Accelerator) -> None:
        self._loss_type = loss_type
        self._accelerator = accelerator
        self._trained: list[Tensor] = []
        self._shrunken = False
        self._loss: Tensor | float = 0.0

    def note(self, trained: Tensor | None, rows: int, device: torch.device) -> None:
        """Which of the responses of a micro-batch are trained on; `None` for all."""
        self._shrunken |= trained is not None
        self._trained.append(torch.ones(rows, dtype=torch.bool, device=device) if trained is None else trained)

    def scaled(self, loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
        """The loss to log of a micro-batch after its backward pass; the step's last one has its gradients scaled."""
        if not self._accelerator.sync_gradients:
            self._loss = self._loss + loss
            return loss
        before, shrunken, trained = self._loss, self._shrunken, self._trained
        self._loss, self._shrunken, self._trained = 0.0, False, []
        if not shrunken:
            return loss
        factor = float(places_over_trained(trained, self._loss_type, self._accelerator))
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return factor * (before + loss) - before

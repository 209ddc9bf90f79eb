"""Scale the loss of a batch from which responses are left out, so that it is a mean over the trained ones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from trl import GRPOConfig

from canon_trl.config.checks import PER_TOKEN, SHRINK_ALTERNATIVES, scales_gradients
from canon_trl.config.loss_stages import LossStages
from canon_trl.hook.token_stages import is_one_number
from canon_trl.method import Method
from canon_trl.sampling import DynamicSampling
from canon_trl.tokens import Tokens

ALTERNATIVES = f"{SHRINK_ALTERNATIVES}, or choose no token_advantage that leaves out responses"

PlaceInStep = Callable[[], tuple[Sequence[Mapping[str, Any]], int]]


def scale_up(trained: Iterable[Tensor], loss_type: str, accelerator: Accelerator) -> Tensor | float:
    """Return the factor by which the loss's divisor is too large: all responses over the trained ones, 0-d.

    Args:
        trained: which responses are trained on, `(B,)` bool per micro-batch of the optimiser step.
        loss_type: TRL's.
        accelerator: gathers over the ranks.
    """
    if loss_type in PER_TOKEN:
        return 1.0
    places = torch.stack(list(trained))
    if loss_type == "bnpo":  # a mean over the tokens of each micro-batch
        places = places.any(dim=1)
    share = accelerator.gather(places.float().mean().unsqueeze(0)).mean()
    return torch.where(share > 0, 1 / share, 0.0)


class FullBatches:
    """Every response of every batch is trained on."""

    def factor(self, place_in_step: PlaceInStep) -> Tensor | float:
        """Return the factor for the loss of a micro-batch in training.

        Args:
            place_in_step: returns the rollout's micro-batches of the optimiser step, and the index of the current one.
        """
        return 1.0

    def scaled(self, loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
        """Return the loss of a micro-batch to log, after its backward pass."""
        return loss

    def restart(self) -> None:
        """Return to the state before the first micro-batch."""


class ShrunkenBatches(FullBatches):
    """Scales the loss of shrunken batches, where the micro-batches of an optimiser step come from one rollout.

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
        return scale_up(trained, self._loss_type, self._accelerator)


class ShrunkenSteps(ShrunkenBatches):
    """Scales the gradients of optimiser steps that take micro-batches of several rollouts.

    The factor holds for the whole step, and is known only after its last rollout.
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
        """Return the loss to log, and scale the gradients at the last micro-batch of the step."""
        if not self._accelerator.sync_gradients:
            self._loss = self._loss + loss
            return loss
        before, shrunken, trained = self._loss, self._shrunken, self._trained
        self.restart()
        if not shrunken:
            return loss
        factor = float(scale_up(trained, self._loss_type, self._accelerator))
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        return factor * (before + loss) - before


def make_weighting(args: GRPOConfig, accelerator: Accelerator, *, routing_loss: bool) -> ShrunkenBatches:
    """Return the weighting of batches from which responses may be left out.

    Raises:
        ValueError: the model adds a `routing_loss`, whose gradients would be scaled too.
    """
    if not scales_gradients(args):
        return ShrunkenBatches(args.loss_type, accelerator)
    if routing_loss:
        raise ValueError(
            f"gradient_accumulation_steps={args.gradient_accumulation_steps} takes micro-batches of several rollouts "
            f"of steps_per_generation={args.steps_per_generation}, whose gradients are scaled together with those of "
            "the router's auxiliary loss; make the latter a multiple of the former, or " + ALTERNATIVES
        )
    return ShrunkenSteps(args.loss_type, accelerator)


def leaves_out(stages: LossStages, options: DynamicSampling | None) -> bool:
    """Return whether a batch may have responses that are not trained on."""
    return bool(stages.choosing) or (options is not None and options.exhausted == "shrink")


def check_terms_can_shrink(stages: LossStages, options: DynamicSampling | None, args: GRPOConfig) -> None:
    """Reject terms of one number where leaving responses out scales gradients.

    Calls each term on example tokens. Terms that fail on them are checked at the first micro-batch.
    """
    if not leaves_out(stages, options) or not scales_gradients(args):
        return
    for method in stages.added:
        if returns_one_number(method):
            raise shrink_error(stages.prefix(method))


def returns_one_number(method: Method) -> bool:
    """Whether a term returns one number for example tokens; false if it fails on them."""
    try:
        return is_one_number(method(Tokens.example()))
    except Exception:  # a user's function may need the device or the vocabulary of the run
        return False


def shrink_error(term: str) -> ValueError:
    """Return the error for a term that cannot leave responses out."""
    return ValueError(
        f"{term} is one number per micro-batch, which cannot leave out a response when an optimiser step spans "
        f"several rollouts; {ALTERNATIVES}"
    )

"""The interface of controllers, and what they can read about the run."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

from canon_trl.method import Method


@runtime_checkable
class Controller(Protocol):
    """Controls one setting of a run, its knob.

    Attributes:
        steers: the knob: `"temperature"`, `"entropy_coef"`, `"epsilon_high"`, or `"<method>.<option>"` for an option
            of an active token advantage, policy loss or loss term, such as `"clip_cov.ratio"`.
    """

    steers: str

    def update(self, measured: Mapping[str, float]) -> float:
        """Return the new value of the knob.

        For the temperature, the trainer calls it once per rollout, after the last micro-batch and before the next
        rollout is sampled; for any other knob, once per optimiser step.

        Args:
            measured: numbers by their names in the log, over all ranks and the same on every rank. They are those of
                the last optimiser step, except that a controller of the temperature gets the `"entropy"` of the
                rollout. Entropies are means over the trained tokens, in nats.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: numbers, strings, and lists and dicts of them."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what `state_dict` returned."""
        ...


@dataclass(frozen=True)
class Run:
    """What the constructor of a controller can read, by the names of its positional parameters.

    Attributes:
        start: value of the knob in the config.
        temperature: temperature in the config.
        vocab_size: size of the model's vocabulary.
        total_steps: updates of the controller in the whole run: rollouts for the temperature, optimiser steps for any
            other knob.
    """

    start: float
    temperature: float
    vocab_size: int
    total_steps: int


READABLE = ("run", *(attribute.name for attribute in fields(Run)))


def make_controller(maker: Method, run: Run) -> Controller:
    """Construct the controller of a run.

    Raises:
        TypeError: the result is not a controller.
    """
    controller = maker(run)
    if not isinstance(controller, Controller):
        raise TypeError(
            f"{maker.name!r} made a {type(controller).__name__}; a controller has steers, update, state_dict and "
            "load_state_dict"
        )
    return controller


def steered_knob(maker: Method) -> str:
    """Return the controller's knob, before a model is loaded; the numbers of this run are placeholders."""
    return make_controller(maker, Run(start=1.0, temperature=1.0, vocab_size=32_000, total_steps=1_000)).steers

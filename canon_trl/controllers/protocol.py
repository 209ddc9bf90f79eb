"""What a controller is, and what it learns about the run that it steers."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

from canon_trl.method import Method


@runtime_checkable
class Controller(Protocol):
    """Steers one knob of a run.

    Attributes:
        steers: the knob: `"temperature"`, `"entropy_coef"`, `"epsilon_high"`, or `"<method>.<option>"` for an option
            of an active method between the advantages and the loss, such as `"clip_cov.ratio"`.
    """

    steers: str

    def update(self, measured: Mapping[str, float]) -> float:
        """The value that the knob takes now.

        A controller of the temperature is asked once per rollout, after its last micro-batch and before the next one
        is sampled; any other once per optimiser step.

        Args:
            measured: numbers of all ranks by the names of the log, the same on every rank: of the last optimiser step,
                but `"entropy"` for the temperature, which is that of the rollout. Entropies are means over the tokens
                that are trained on, in nats.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to resume: numbers, text, lists and dicts of them."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what `state_dict` returned."""
        ...


@dataclass(frozen=True)
class Run:
    """What the maker of a controller can read, by the names of its positional parameters.

    Attributes:
        start: the value of the knob in the config.
        temperature: that of the config.
        vocab_size: tokens that the model can tell apart.
        total_steps: updates of the controller in the whole run: rollouts for the temperature, optimiser steps for any
            other knob.
    """

    start: float
    temperature: float
    vocab_size: int
    total_steps: int


READABLE = ("run", *(attribute.name for attribute in fields(Run)))


def make_controller(maker: Method, run: Run) -> Controller:
    """The controller of a run.

    Raises:
        TypeError: what was made is no controller.
    """
    made = maker(run)
    if not isinstance(made, Controller):
        raise TypeError(
            f"{maker.name!r} made a {type(made).__name__}; a controller has steers, update, state_dict and "
            "load_state_dict"
        )
    return made


def steered_by(maker: Method) -> str:
    """The knob that the controller steers, which can be known before a model is loaded."""
    return make_controller(maker, Run(start=1.0, temperature=1.0, vocab_size=32_000, total_steps=1_000)).steers

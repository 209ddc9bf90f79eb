"""The knobs that controllers steer: their names, and where TRL or a method stores their values."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

from canon_trl.hook.temperature import Temperature
from canon_trl.method import Method


class Knob(Protocol):
    """A number that a controller may change during a run."""

    value: float


class Attribute:
    """A number that TRL's loss reads from an attribute of the trainer."""

    def __init__(self, trainer: Any, name: str) -> None:
        self._trainer = trainer
        self._name = name

    @property
    def value(self) -> float:
        return getattr(self._trainer, self._name)

    @value.setter
    def value(self, value: float) -> None:
        setattr(self._trainer, self._name, value)


class Option:
    """An option of a method, read at every call.

    Args:
        method: this trainer's own copy, since its options change.
        name: name of the option.
    """

    def __init__(self, method: Method, name: str) -> None:
        self._method = method
        self._name = name

    @property
    def value(self) -> float:
        return self._method.all_options[self._name]

    @value.setter
    def value(self, value: float) -> None:
        self._method.with_options({self._name: value}, where=f"{self._method.name}.")  # checks the bounds
        self._method.options[self._name] = value


def make_knob(name: str, trainer: Any, methods: Sequence[Method]) -> Knob:
    """Make the knob of a name that `check_controllers` has accepted.

    Args:
        name: `"temperature"`, `"entropy_coef"`, `"epsilon_high"` or `"<method>.<option>"`.
        trainer: a [`~trl.GRPOTrainer`].
        methods: the active methods, this trainer's own copies.
    """
    if name == "temperature":
        return Temperature(trainer)
    if name == "entropy_coef":
        trainer._entropy_bonus_enabled = True  # at 0, TRL would leave the bonus out
        return Attribute(trainer, name)
    if name == "epsilon_high":
        return Attribute(trainer, name)
    owner, option = name.rsplit(".", 1)
    (method,) = (method for method in methods if method.name == owner)
    return Option(method, option)


def checked_value(value: Any, controller: str) -> float:
    """Return a controller's value as a float; raise ValueError if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"the controller of {controller!r} returned {value!r}; it must return a finite number")
    return float(value)

"""Run the controllers: measure, move their knobs, and save and restore both."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from torch import Tensor

from canon_trl.config.controllers import by_knob
from canon_trl.config.loss_stages import LossStages
from canon_trl.controllers.protocol import Controller, Run, make_controller
from canon_trl.hook.counting import Counting
from canon_trl.hook.knobs import Knob, checked_value, make_knob
from canon_trl.hook.measured import MeanEntropy, Measured
from canon_trl.hook.rollout_parts import plain
from canon_trl.method import Method

logger = get_logger(__name__)  # logs on the main process only, since every rank finds the same


class Steering(Counting):
    """Moves knobs between rollouts and optimiser steps, to the same values on all ranks."""

    _stages = LossStages()
    _measured: Measured
    _rollout_entropy: MeanEntropy
    _measures = False  # whether anything reads the measured numbers
    _controller_methods: Mapping[str, Method] = {}  # which make the controllers, by knob
    _knobs: Mapping[str, Knob] = {}
    _configured_values: Mapping[str, float] = {}  # of the knobs
    _controllers: Mapping[str, Controller] = {}

    def _prepare_steering(self, controllers: Sequence[Method]) -> None:
        """Find the knobs, once TRL has made the trainer.

        Args:
            controllers: the methods that make the controllers.
        """
        self._controller_methods = by_knob(controllers)
        self._measures = bool(controllers) or self._stages.read("measured")
        self._knobs = {name: make_knob(name, self, [*self._stages]) for name in self._controller_methods}
        self._configured_values = {name: knob.value for name, knob in self._knobs.items()}
        self._measured, self._rollout_entropy = Measured(self.accelerator), MeanEntropy(self.accelerator)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple:
        """As transformers'; also resets the knobs and makes new controllers."""
        values = super().set_initial_training_values(args, dataloader)
        self._measured, self._rollout_entropy = Measured(self.accelerator), MeanEntropy(self.accelerator)
        self._controllers = controllers = {}
        for name, method in self._controller_methods.items():
            self._knobs[name].value = self._configured_values[name]
            run = Run(
                start=self._configured_values[name],
                temperature=self.args.temperature,
                vocab_size=self.model.config.get_text_config().vocab_size,
                total_steps=self._rollouts_in_run if name == "temperature" else values[-1],
            )
            controllers[name] = make_controller(method, run)
        return values

    def _configured_options(self, method: Method) -> dict[str, Any]:
        """Return the options of a method as configured, before any controller changed them."""
        first = self._configured_values
        return {name: first.get(f"{method.name}.{name}", value) for name, value in method.all_options.items()}

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if not self._measures:
            return super().training_step(*args, **kwargs)
        self._measured.open(self._metrics["train"])
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self._end_step()
        if "temperature" in self._controllers and self._step % self._generate_every == 0:
            self._end_rollout()
        return loss

    def _measure_entropy(self, entropies: Tensor, mask: Tensor) -> None:
        """Add the entropies of a micro-batch, `(B, T)`, on the tokens of the mask."""
        if self._measures:
            self._measured.add(entropies, mask)
            self._rollout_entropy.add(entropies, mask)

    def _end_step(self) -> None:
        """Move the knobs before the optimiser steps; nothing reads them until the next micro-batch."""
        self._measured.close(self._metrics["train"])
        for name, knob in self._knobs.items():
            self._metrics["train"][f"controller/{name}"].append(knob.value)
        for name in self._controllers.keys() - {"temperature"}:
            self._move(name, self._measured.numbers)

    def _end_rollout(self) -> None:
        """Move the temperature between the last micro-batch of a rollout and the sampling of the next one."""
        entropy = self._rollout_entropy.take()
        if entropy is not None:  # None if no token was trained on
            self._move("temperature", self._measured.numbers | {"entropy": entropy})

    def _move(self, name: str, measured: Mapping[str, float]) -> None:
        self._knobs[name].value = checked_value(self._controllers[name].update(measured), name)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers', but at the configured temperature."""
        with self._configured_temperature():
            return super().evaluation_loop(*args, **kwargs)

    @contextmanager
    def _configured_temperature(self) -> Iterator[None]:
        knob = self._knobs.get("temperature")
        if knob is None:
            yield
            return
        now, knob.value = knob.value, self._configured_values["temperature"]
        try:
            yield
        finally:
            knob.value = now

    def _steering_state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, in plain numbers and text."""
        return {
            "measured": dict(self._measured.numbers),
            "rollout_entropy": self._rollout_entropy.totals.tolist(),  # of this rank
            "knobs": {name: float(knob.value) for name, knob in self._knobs.items()},
            "controllers": {name: plain(each.state_dict()) for name, each in self._controllers.items()},
        }

    def _restore_steering(self, state: Mapping[str, Any] | None) -> None:
        """Restore controllers and knobs before sampling, from the main process, since a new rank has no file."""
        (state,) = broadcast_object_list([state])
        if state is None:
            if self._measures:
                logger.warning(
                    "the checkpoint has no state for the controllers or their measurements: they start over"
                )
            return
        self._measured.numbers = dict(state["measured"])
        for name, controller in self._controllers.items():
            if name in state["controllers"]:
                controller.load_state_dict(state["controllers"][name])
                self._knobs[name].value = state["knobs"][name]

    def _restore_rollout_entropy(self, state: Mapping[str, Any]) -> None:
        """Restore this rank's part, together with the unfinished rollout."""
        totals = self._rollout_entropy.totals
        totals.copy_(torch.tensor(state["rollout_entropy"], dtype=totals.dtype))

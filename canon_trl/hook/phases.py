"""What the trainer is doing when TRL calls an overridden method: making a rollout, computing a loss, or neither."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor
from trl import GRPOTrainer


class Phase:
    """Neither a rollout nor a loss is under way: TRL's methods run unchanged.

    A phase overrides the methods that it needs. Each receives the TRL method that it wraps, and its arguments.
    """

    def generate(self, generate: Callable[..., tuple], prompts: list) -> tuple:
        return generate(prompts)

    def score(self, score: Callable[..., tuple], model: Any, input_ids: Tensor, *args: Any, **options: Any) -> tuple:
        return score(model, input_ids, *args, **options)

    def reward(self, calculate: Callable[..., Tensor], inputs: list, *args: Any) -> Tensor:
        return calculate(inputs, *args)


IDLE = Phase()


class Phases(GRPOTrainer):
    """Passes TRL's calls to the current phase."""

    _phase: Phase = IDLE
    _same_server: AbstractContextManager = nullcontext()

    @contextmanager
    def _in_phase(self, phase: Phase) -> Iterator[None]:
        """Enter a phase. The previous one returns even after an error, and an evaluation may run in between."""
        before, self._phase = self._phase, phase
        try:
            yield
        finally:
            self._phase = before

    def _generate(self, prompts: list) -> tuple:
        with self._same_server:
            return self._phase.generate(super()._generate, prompts)

    def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> tuple:
        return self._phase.score(super()._get_per_token_logps_and_entropies, *args, **options)

"""What the trainer is doing while TRL calls back: making a rollout, computing a loss, or neither."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from trl import GRPOTrainer


class Phase:
    """Neither a rollout nor a loss is under way: TRL's methods are called as they are.

    Each phase overrides what it looks at. A method is handed the TRL method that it replaces, and its arguments.
    """

    def generate(self, generate: Callable[..., tuple], prompts: list) -> tuple:
        return generate(prompts)

    def score(self, score: Callable[..., tuple], model: Any, input_ids: Tensor, *args: Any, **options: Any) -> tuple:
        return score(model, input_ids, *args, **options)

    def reward(self, calculate: Callable[..., Tensor], inputs: list, *args: Any) -> Tensor:
        return calculate(inputs, *args)


ELSEWHERE = Phase()


class Phases(GRPOTrainer):
    """Hands what TRL calls back to the phase that the trainer is in."""

    _phase: Phase = ELSEWHERE

    @contextmanager
    def _during(self, phase: Phase) -> Iterator[None]:
        """Be in this phase; an error, or an evaluation in between, leaves no parts of another batch behind."""
        before, self._phase = self._phase, phase
        try:
            yield
        finally:
            self._phase = before

    def _generate(self, prompts: list) -> tuple:
        return self._phase.generate(super()._generate, prompts)

    def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> tuple:
        return self._phase.score(super()._get_per_token_logps_and_entropies, *args, **options)

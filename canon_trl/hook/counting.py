"""Count the micro-batches and rollouts of a run."""

from typing import Any

from trl import GRPOTrainer

from canon_trl.config.run_length import rollouts_in_run


class Counting(GRPOTrainer):
    """Counts the rollouts of a run for estimators with a schedule."""

    _steps_not_restored = 0  # micro-batches before a resume, not counted in `_step`
    _epoch_length = 0  # in micro-batches
    _rollouts_in_run = 0

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple:
        """As transformers'; also notes the number of rollouts."""
        values = super().set_initial_training_values(args, dataloader)
        *_, self._epoch_length, steps = values
        self._rollouts_in_run = rollouts_in_run(
            steps,
            per_epoch=self._epoch_length,
            accumulation=args.gradient_accumulation_steps,
            per_rollout=self._generate_every,
        )
        return values

    def _total_rollouts(self) -> int:
        """Count the rollouts of the whole run, even if it has not begun."""
        if not self._rollouts_in_run:
            self.set_initial_training_values(self.args, self.get_train_dataloader())
        return self._rollouts_in_run

    @property
    def _generate_every(self) -> int:
        """Micro-batches of training per rollout."""
        return self.args.steps_per_generation * self.num_iterations

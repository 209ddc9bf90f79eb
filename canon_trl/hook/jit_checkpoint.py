"""The checkpoint that is written when a job is asked to end (`enable_jit_checkpoint`), where a run can resume."""

from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_jit_checkpoint import JITCheckpointCallback


class CheckpointAtStepBegin(JITCheckpointCallback):
    """As transformers', but only at the beginning of a step, the same one on all ranks.

    transformers also writes it before the optimiser's step, which loses the gradients, and between a step and its log
    entry. The first step of an epoch is left out, since drawing the order of the data has changed the random state.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first_of_epoch = True

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self._first_of_epoch = True

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        first, self._first_of_epoch = self._first_of_epoch, False
        if not first and self.jit_manager and any(gather_object([self.jit_manager.is_checkpoint_requested])):
            control.should_training_stop = True
            self.jit_manager.execute_jit_checkpoint()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        pass

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        pass

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        pass


def write_at_step_begin(trainer: Trainer) -> None:
    """Replace transformers' callback."""
    given: Any = trainer.pop_callback(JITCheckpointCallback)
    callback = CheckpointAtStepBegin()
    callback.trainer, callback.jit_manager = trainer, given.jit_manager
    trainer.add_callback(callback)

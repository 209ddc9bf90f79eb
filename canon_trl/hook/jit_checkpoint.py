"""The checkpoint written when a job is asked to end (`enable_jit_checkpoint`), where a run can resume."""

from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_jit_checkpoint import JITCheckpointCallback


class CheckpointAtStepBegin(JITCheckpointCallback):
    """As transformers', but on all ranks at the same step, and where nothing lies between two steps.

    transformers also writes it before the optimiser's step, when its gradients are lost, and between a step and its
    log entry. Not before an epoch's first step either, when drawing its data's order has moved the random state.
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
    """Let this callback take the place of transformers'."""
    given: Any = trainer.pop_callback(JITCheckpointCallback)
    callback = CheckpointAtStepBegin()
    callback.trainer, callback.jit_manager = trainer, given.jit_manager
    trainer.add_callback(callback)

"""Checkpoints at the end of an epoch, so that a resumed run neither skips nor repeats that end."""

from typing import Any

from accelerate.state import GradientState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class EpochEnds(TrainerCallback, ExportableState):
    """Delays a checkpoint to a point from which a run can resume.

    - At the last step of an epoch, until the evaluation and the log entry of the epoch's end are done, since
      transformers resumes such a checkpoint in the next epoch.
    - At the end of a pass over a stream whose last micro-batches do not fill an optimiser step, until that step is
      done, since checkpoints hold no gradients.

    Attributes:
        ended: whether the epoch was over when the checkpoint was written; saved in `trainer_state.json`.
    """

    def __init__(self) -> None:
        self.ended = False
        self._delayed = False

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.ended = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        due = control.should_save or self._delayed
        self._delayed = due and (state.epoch or 0.5).is_integer()
        control.should_save = due and not self._delayed

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.ended = True
        due = control.should_save or self._delayed
        self._delayed = due and not GradientState().sync_gradients
        control.should_save = due and not self._delayed

    def state(self) -> dict[str, dict[str, bool]]:
        return {"args": {}, "attributes": {"ended": self.ended}}


def epoch_had_ended(state: TrainerState) -> bool:
    """Whether the epoch was over when a trainer of this package saved this state."""
    saved: Any = state.stateful_callbacks or {}
    return EpochEnds.__name__ in saved and saved[EpochEnds.__name__]["attributes"]["ended"]

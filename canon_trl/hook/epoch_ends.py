"""Checkpoints about an epoch's end, from where a resumed run must neither leave its end out nor repeat it."""

from typing import Any

from accelerate.state import GradientState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class EpochEnds(TrainerCallback, ExportableState):
    """Moves a checkpoint to where a run can resume from it.

    - One at the last step of an epoch is written after what the epoch's end brings, an evaluation or a log entry:
      transformers resumes it in the next epoch.
    - One at the end of a stream's pass, whose last micro-batches do not make up an optimiser step, is written after
      the step that they go into: gradients are in no checkpoint.

    Attributes:
        ended: whether the epoch was over when the checkpoint was written; kept in `trainer_state.json`.
    """

    def __init__(self) -> None:
        self.ended = False
        self._put_off = False

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.ended = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        due = control.should_save or self._put_off
        self._put_off = due and (state.epoch or 0.5).is_integer()
        control.should_save = due and not self._put_off

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.ended = True
        due = control.should_save or self._put_off
        self._put_off = due and not GradientState().sync_gradients
        control.should_save = due and not self._put_off

    def state(self) -> dict[str, dict[str, bool]]:
        return {"args": {}, "attributes": {"ended": self.ended}}


def epoch_had_ended(state: TrainerState) -> bool:
    """Whether it had when this state was saved, by this package's trainer."""
    saved: Any = state.stateful_callbacks or {}
    return EpochEnds.__name__ in saved and saved[EpochEnds.__name__]["attributes"]["ended"]

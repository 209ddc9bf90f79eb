"""A compact progress bar, in the terminal and in a notebook."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from transformers.utils.import_utils import is_in_notebook

SHOWN = {"reward": "reward", "length": "completions/mean_length", "entropy": "entropy"}


def shown_numbers(logs: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the numbers of a log entry that matter most, by label; empty if the entry is not about training."""
    if logs is None or "reward" not in logs:
        return {}
    numbers = {label: logs.get(name) for label, name in SHOWN.items()}
    return {label: f"{float(value):.3g}" for label, value in numbers.items() if value is not None}


class CompactProgress(ProgressCallback):
    """A progress bar with reward, length and entropy, instead of transformers' line per log entry.

    The trainers of this package use it by default. To get transformers' output back:

        trainer.remove_callback(CompactProgress)
        trainer.add_callback(ProgressCallback)
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        numbers = shown_numbers(logs)
        if state.is_world_process_zero and self.training_bar is not None and numbers:
            self.training_bar.set_postfix(numbers)


def replace_progress(callbacks: list[TrainerCallback]) -> None:
    """Replace transformers' progress bar in a trainer's callbacks, if there is one."""
    compact: dict[type, type] = {ProgressCallback: CompactProgress}
    if is_in_notebook():
        from transformers.utils.notebook import NotebookProgressCallback

        from canon_trl.evaluation.notebook_progress import CompactNotebookProgress

        compact[NotebookProgressCallback] = CompactNotebookProgress
    callbacks[:] = [compact[type(each)]() if type(each) in compact else each for each in callbacks]

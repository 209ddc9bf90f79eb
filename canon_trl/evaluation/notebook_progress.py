"""The compact progress bar of a notebook. Importing this module needs IPython."""

from typing import Any

from transformers.utils.notebook import NotebookProgressCallback, NotebookTrainingTracker

from canon_trl.evaluation.progress import SHOWN, shown_numbers

ROWS = 10


class CompactNotebookProgress(NotebookProgressCallback):
    """A progress bar over the last log entries, with reward, length and entropy instead of the loss."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        make: Any = NotebookTrainingTracker  # untyped
        self.training_tracker = make(state.max_steps, ["step", *SHOWN])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        numbers = shown_numbers(logs)
        if self.training_tracker is not None and numbers:
            self.training_tracker.write_line({"step": state.global_step, **dict.fromkeys(SHOWN, ""), **numbers})
            del self.training_tracker.inner_table[1:-ROWS]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self.training_tracker is not None:
            self.training_tracker.remove_child()
        elif self.prediction_bar is not None:
            self.prediction_bar.close()
        self.prediction_bar = None
        self._force_next_update = True

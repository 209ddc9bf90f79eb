"""The report of a run: its log as files and a picture, and the held-out accuracy before and after."""

import logging
from collections import defaultdict
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from canon_trl.evaluation.training_curves import evaluated_dataset

logger = logging.getLogger(__name__)


class RunReport(TrainerCallback):
    """Writes `metrics.csv`, `metrics.json` and `curves.png` at the end of training, and prints the held-out accuracy.

    The trainers of this package have it by default; `trainer.remove_callback(RunReport)` turns it off. It also writes
    the files if training stops with an error or Ctrl-C after its first log entry. It prints the accuracy if the final
    model was evaluated, also by a later `trainer.evaluate()`, which rewrites the files:

        accuracy on held-out prompts: 0.461 before, 0.953 after training

    Args:
        trainer: a trainer of this package.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._has_logged = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._has_logged = False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._has_logged = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.save()
        self._print(held_out_lines(self._trainer))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step and not self._trainer.is_in_train:
            self.save()
            self._print(held_out_lines(self._trainer, evaluated_dataset(kwargs.get("metrics") or {})))

    def save_interrupted(self) -> None:
        """Write the log of a stopped run, unless it only has a checkpoint's, which may be shorter than the files."""
        if self._has_logged:
            self.save()

    def save(self) -> None:
        """Write the log so far, if there is any; a failure is only a warning, so that it cannot lose a model."""
        try:
            if self._trainer.state.log_history:
                self._trainer.save_history()
        except Exception:
            logger.warning("metrics.csv, metrics.json or curves.png could not be written", exc_info=True)

    def _print(self, lines: list[str]) -> None:
        for line in lines:
            self._trainer.accelerator.print(line)


def was_evaluated(trainer: Any) -> bool:
    """Whether the log has an evaluation of the current model on held-out prompts."""
    return bool(held_out_lines(trainer))


def held_out_lines(trainer: Any, dataset: str | None = None) -> list[str]:
    """Return a line per evaluation dataset with the held-out accuracy at the first evaluation and of the final model.

    The final model is the best one if training loaded that at its end (`load_best_model_at_end`).

    Args:
        trainer: the trainer.
        dataset: report only this one, evaluated after training. Default: all, as evaluated during training.

    Returns:
        The lines; none for a dataset on which the final model was not evaluated, or if no reward measures accuracy.
    """
    accuracy = trainer.accuracy_name
    if accuracy is None:
        return []
    held_out, by_dataset = f"eval_rewards/{accuracy}/mean", defaultdict(list)
    for entry in trainer.state.log_history:
        if held_out in entry and dataset in (None, evaluated_dataset(entry)):
            by_dataset[evaluated_dataset(entry)].append(entry)
    lines, final = [], trainer.state.global_step
    if dataset is None and trainer.args.load_best_model_at_end:
        final = trainer.state.best_global_step or final
    for name, entries in by_dataset.items():
        entries = [entry for entry in entries if entry["step"] <= final]
        if entries and entries[-1]["step"] == final:
            first = "before" if entries[0]["step"] == 0 else f"at step {entries[0]['step']}"
            before = f"{_shown(entries[0][held_out])} {first}, " if len(entries) > 1 else ""
            best = "" if final == trainer.state.global_step else f" (best, step {final})"
            after = f"{_shown(entries[-1][held_out])} after training{best}"
            lines.append(f"{accuracy} on held-out prompts{f' of {name}' if name else ''}: {before}{after}")
    return lines


def _shown(value: float | None) -> str:
    return "not scored" if value is None else f"{value:.3f}"

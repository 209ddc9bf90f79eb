"""Train a model, and save it with its card, numbers and curves."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, GRPOTrainer, ModelConfig

from canon_trl.cli.arguments import RecipeArguments
from canon_trl.evaluation.run_report import was_evaluated
from canon_trl.guards.interrupts import finished_before_interrupt
from canon_trl.tasks import TASKS


def name_model(recipe: RecipeArguments, model: ModelConfig) -> str:
    """Return the model to start from: the named one, or else the embedded task's."""
    if model.model_name_or_path is None:
        assert recipe.task is not None  # as `check` has made sure
        return TASKS[recipe.task].model
    return model.model_name_or_path


def model_options(model: ModelConfig, training: GRPOConfig) -> dict[str, Any]:
    """Return the options to load the model with."""
    named = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    return named | (training.model_init_kwargs or {})


class SavedAtOnce(TrainerCallback):
    """Saves the model right after the last step, before an evaluation, a checkpoint or a report can fail."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self._trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            save(self._trainer)


def save(trainer: GRPOTrainer) -> None:
    with finished_before_interrupt():
        trainer.save_model(trainer.args.output_dir, _internal_call=True)  # pushing to the Hub comes later


def train_and_save(trainer: GRPOTrainer, recipe: RecipeArguments) -> None:
    """Train, and save model, card, numbers and curves in the output folder, the model first."""
    training: GRPOConfig = trainer.args
    trainer.add_callback(SavedAtOnce(trainer))
    resume = training.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume == "true" else resume)
    save(trainer)  # again, because training may have stopped early or reloaded the best model
    data = recipe.dataset_name or f"the embedded task {recipe.task}"
    try:
        if training.eval_strategy != "no" and not was_evaluated(trainer):
            trainer.evaluate()  # prints the accuracy before and after
    finally:
        trainer.create_model_card(dataset_name=data)
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=data)
    trainer.accelerator.print(f"model, model card, metrics.csv, metrics.json and curves.png: {training.output_dir}")

"""Train a model, show the progress, and save model, card, numbers and curves."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from trl import GRPOConfig, GRPOTrainer, ModelConfig

from canon_trl.cli.arguments import RecipeArguments
from canon_trl.tasks import TASKS


class CompactProgress(ProgressCallback):
    """A progress bar with the numbers that matter, instead of one line per log entry."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None and "reward" in (logs or {}):
            shown = {"reward": "reward", "length": "completions/mean_length", "entropy": "entropy"}
            numbers = {label: logs.get(name) for label, name in shown.items()}
            self.training_bar.set_postfix({k: f"{float(v):.3g}" for k, v in numbers.items() if v is not None})


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
    trainer.save_model(trainer.args.output_dir, _internal_call=True)  # pushing to the Hub comes later


def train_and_save(trainer: GRPOTrainer, recipe: RecipeArguments) -> None:
    """Train with a progress bar, and save model, card, numbers and curves in the output folder, the model first."""
    training: GRPOConfig = trainer.args
    trainer.remove_callback(ProgressCallback)
    if not training.disable_tqdm:
        trainer.add_callback(CompactProgress)
    trainer.add_callback(SavedAtOnce(trainer))
    resume = training.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume == "true" else resume)
    save(trainer)  # again, because training may have stopped early or reloaded the best model
    data = recipe.dataset_name or f"the embedded task {recipe.task}"
    try:
        if training.eval_strategy != "no":
            report_held_out(trainer)
    finally:
        trainer.create_model_card(dataset_name=data)
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=data)
    trainer.accelerator.print(f"model, model card, metrics.csv, metrics.json and curves.png: {training.output_dir}")


def accuracy_name(trainer: GRPOTrainer) -> str:
    """Return the name of the reward function that measures accuracy, without the noise of `reward_flip`."""
    name = getattr(trainer.args, "accuracy_reward", None) or trainer.reward_func_names[0]
    return f"true_{name}" if f"true_{name}" in trainer.reward_func_names else name


def report_held_out(trainer: GRPOTrainer) -> None:
    """Print the held-out accuracy at the first evaluation and of the trained model."""
    accuracy = accuracy_name(trainer)
    held_out = f"eval_rewards/{accuracy}/mean"
    evaluations = [entry for entry in trainer.state.log_history if held_out in entry]
    if not evaluations or evaluations[-1]["step"] < trainer.state.global_step:
        trainer.evaluate()
        evaluations.append(trainer.state.log_history[-1])
    before, after = (
        "not scored" if entry[held_out] is None else f"{entry[held_out]:.3f}"
        for entry in (evaluations[0], evaluations[-1])
    )
    trainer.accelerator.print(f"{accuracy} on held-out prompts: {before} before, {after} after training")

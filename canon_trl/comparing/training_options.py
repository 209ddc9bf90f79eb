"""The options that a run's training shares with the sampling before and after it."""

from pathlib import Path
from typing import Any

SCRIPTS = {"train_canon": "canon", "train_astar_po": "astar_po"}  # the trainer of each
# Options that training shares with the commands that sample.
DATA_OPTIONS = (
    "task",
    "task_eval_prompts",
    "dataset_name",
    "dataset_config",
    "dataset_test_split",
    "eval_dataset_name",
    "eval_dataset_config",
    "prompt_column",
    "answer_column",
    "answer_template",
    "system_prompt",
    "reward_funcs",
    "reward_weights",
    "reward_time_limit",
    "soft_overlong_cache",
    "max_completion_length",
    "chat_template_kwargs",
)
# Options that value estimation shares with training unless `values` overrides them: both use the same prompts and the
# same initial policy.
VALUE_OPTIONS = (
    *DATA_OPTIONS,
    *("task_train_prompts", "dataset_train_split", "model_name_or_path", "reward_flip"),
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
)


def evaluation_options(settings: dict[str, Any], *, model: Path, folder: Path) -> dict[str, Any]:
    """Return the options of `evaluate`: the data options of the training, and the comparison's own."""
    training = settings["training"]
    options: dict[str, Any] = {key: training[key] for key in DATA_OPTIONS if key in training} | settings["evaluate"]
    return options | {"model_name_or_path": str(model), "output_dir": str(folder)}

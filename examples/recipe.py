"""The options that a recipe adds to the trainer's, its data and its rewards, and how to run it."""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value, load_dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from trl import GRPOConfig, GRPOTrainer, ModelConfig, ScriptArguments, TrlParser
from trl.rewards import (
    accuracy_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)

from canon_trl.hook.data_checks import check_model_name
from canon_trl.imports import is_import_path, load_function
from canon_trl.publishing.model_card import is_on_hub
from canon_trl.recipes import read_recipe
from canon_trl.sampling.prompt_checks import check_columns, fault_of
from canon_trl.tasks import TASKS
from canon_trl.tasks.noise import flipped, measured

logger = logging.getLogger(__name__)


@wraps(reasoning_accuracy_reward)
def reasoning_reward(completions: list, solution: Sequence[str | None], **kwargs: Any) -> list[float | None]:
    # TRL's function gives 0 to unfinished reasoning even if the reference answer is missing.
    rewards = reasoning_accuracy_reward(completions=completions, solution=solution, **kwargs)
    return [None if right is None else reward for right, reward in zip(solution, rewards, strict=True)]


REWARDS = {
    "accuracy_reward": accuracy_reward,
    "reasoning_accuracy_reward": reasoning_reward,
    "think_format_reward": think_format_reward,
}
FILE_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
NEED_MATH_VERIFY = ("accuracy_reward", "reasoning_accuracy_reward")

# Options that an embedded task does not read.
DATASET_OPTIONS = (
    *("dataset_config", "dataset_train_split", "dataset_test_split", "dataset_streaming"),
    *("eval_dataset_name", "eval_dataset_config"),
    *("prompt_column", "answer_column", "answer_template", "system_prompt"),
)


@dataclass
class RecipeArguments(ScriptArguments):
    """Data and rewards: either an embedded task, or a dataset with a prompt and an answer column."""

    task: str | None = field(
        default=None, metadata={"help": f"Embedded task, one of {list(TASKS)}; provides its model, data and reward."}
    )
    task_train_prompts: int = field(
        default=2048, metadata={"help": "Number of prompts from the embedded task to train on."}
    )
    task_eval_prompts: int = field(
        default=512, metadata={"help": "Number of held-out prompts from the embedded task."}
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset or file with the held-out prompts and the same columns; a dataset is read at "
            "dataset_test_split, a file as a whole. Default: that split of dataset_name."
        },
    )
    eval_dataset_config: str | None = field(default=None, metadata={"help": "Configuration of eval_dataset_name."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the dataset with the prompt."})
    answer_column: str = field(
        default="answer",
        metadata={
            "help": "Column with the answer. Reward functions get it as text under `solution` (None if missing), and "
            "unchanged under its own name."
        },
    )
    answer_template: str = field(
        default="{answer}",
        metadata={
            "help": "Template for `solution`, with `{answer}` in it; math-verify parses bare LaTeX correctly only in "
            "`${answer}$`."
        },
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message for every prompt that does not begin with one."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Reward functions: {', '.join(REWARDS)}, soft_overlong_punishment, import paths "
            "`package.module:function`, or `model:` followed by the name of a reward model."
        },
    )
    soft_overlong_cache: int = field(
        default=1024,
        metadata={"help": "Number of tokens before the length limit at which soft_overlong_punishment starts."},
    )
    reward_flip: float = field(
        default=0.0,
        metadata={
            "help": "Probability below 0.5 that the accuracy reward of a response is flipped from 0 to 1 or back, as "
            "by a noisy verifier. The true reward is logged as `true_...` with weight 0. Default: 0."
        },
    )

    @property
    def held_out(self) -> tuple[str | None, str | None]:
        """Name and configuration of the dataset with the held-out prompts."""
        if self.eval_dataset_name is not None:
            return self.eval_dataset_name, self.eval_dataset_config
        return self.dataset_name, self.dataset_config


class CompactProgress(ProgressCallback):
    """A progress bar with the numbers that matter, instead of one line per log entry."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict | None = None, **kwargs
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None and "reward" in (logs or {}):
            shown = {"reward": "reward", "length": "completions/mean_length", "entropy": "entropy"}
            numbers = {label: logs.get(name) for label, name in shown.items()}
            self.training_bar.set_postfix({k: f"{float(v):.3g}" for k, v in numbers.items() if v is not None})


def parse(argv: list[str], *config_classes: type, embedded: str) -> tuple:
    """`RecipeArguments`, the given configs and `ModelConfig` from flags and a recipe, by default `embedded`."""
    recipe, *configs, model = parse_unchecked(argv, *config_classes, embedded=embedded)
    check(recipe, model, rewarded=any(getattr(config, "policy_reward", None) for config in configs))
    check_nothing_ignored(recipe)
    return recipe, *configs, model


def parse_unchecked(argv: list[str], *config_classes: type, embedded: str) -> tuple:
    """Like [`parse`], for a script whose data is named elsewhere."""
    classes = (RecipeArguments, *config_classes, ModelConfig)
    parser = TrlParser(classes)
    name, argv = split_config(argv)
    named = {flag.split("=")[0].replace("-", "_") for flag in argv if flag.startswith("-")}
    if name is None and not named & {"__dataset_name", "__task", "__help", "_h"}:
        name = embedded
    if name is not None:
        known = {option.name for each in classes for option in fields(each) if option.init}
        options = read_recipe(name, known={*known, "env"})
        environment = options.pop("env", {})
        if not isinstance(environment, dict):
            raise ValueError(f"env={environment!r} must map names of environment variables to values")
        os.environ.update({variable: str(value) for variable, value in environment.items()})
        parser.set_defaults_with_config(**options)
    return parser.parse_args_and_config(argv)


def split_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of `--config`, and the other arguments."""
    argv = [part for flag in argv for part in (flag.split("=", 1) if flag.startswith("--config=") else [flag])]
    if "--config" not in argv:
        return None, argv
    place = argv.index("--config")
    if place + 1 == len(argv):
        raise ValueError("--config is given without a value; it must be the path or the name of a recipe")
    return argv[place + 1], argv[:place] + argv[place + 2 :]


def check(recipe: RecipeArguments, model: ModelConfig, *, rewarded: bool = False) -> None:
    """Raise an error for options that contradict each other; `rewarded` says that the policy itself gives a reward."""
    if (recipe.task is None) == (recipe.dataset_name is None):
        raise ValueError(f"task={recipe.task!r} and dataset_name={recipe.dataset_name!r}: give exactly one of them")
    if recipe.task is not None and recipe.task not in TASKS:
        raise ValueError(f"task={recipe.task!r} must be one of {list(TASKS)}")
    task_rewards = recipe.task is not None and recipe.reward_funcs is None
    if not recipe.reward_funcs and not task_rewards and not rewarded:
        raise ValueError("reward_funcs is empty; training needs at least one reward function or a policy_reward")
    if recipe.task is None and model.model_name_or_path is None:
        raise ValueError("model_name_or_path is missing")
    if not 0 <= recipe.reward_flip < 0.5:
        raise ValueError(f"reward_flip={recipe.reward_flip!r} must lie in [0, 0.5)")
    for name in ("dataset_config", "eval_dataset_config", "system_prompt"):
        if getattr(recipe, name) in ("None", "none"):
            raise ValueError(f"{name}={getattr(recipe, name)!r} is a text; leave it out, or write null in YAML")
    if recipe.eval_dataset_config is not None and recipe.eval_dataset_name is None:
        raise ValueError(
            f"eval_dataset_config={recipe.eval_dataset_config!r} needs an eval_dataset_name, which is None"
        )
    for name in ("dataset_name", "eval_dataset_name"):
        check_data_name(getattr(recipe, name), name)
    check_model_name(model.model_name_or_path, "model_name_or_path")
    if "{answer}" not in recipe.answer_template:
        raise ValueError(f"answer_template={recipe.answer_template!r} must contain '{{answer}}'")
    for name in recipe.reward_funcs or []:
        if name in NEED_MATH_VERIFY and find_spec("math_verify") is None:
            raise ImportError(f"reward_funcs has {name!r}, which needs math-verify; install canon-trl[math]")
        if name.startswith("model:"):
            check_model_name(name.removeprefix("model:"), "reward_funcs")


def check_data_name(name: str | None, option: str) -> None:
    """Raise an error for a missing file, which the loader would look for on the Hub."""
    if name is not None and not Path(name).exists() and (Path(name).suffix in FILE_BUILDERS or not is_on_hub(name)):
        raise ValueError(f"{option}={name!r}: there is no such file or folder")


def check_nothing_ignored(recipe: RecipeArguments) -> None:
    """Raise an error for options that the recipe sets but does not read."""
    defaults = {option.name: option.default for option in fields(recipe)}
    changed = [name for name, default in defaults.items() if getattr(recipe, name) != default]
    unread = ["ignore_bias_buffers", *(DATASET_OPTIONS if recipe.task is not None else ())]
    ignored = [name for name in changed if name in unread]
    if "soft_overlong_cache" in changed and "soft_overlong_punishment" not in (recipe.reward_funcs or []):
        ignored.append("soft_overlong_cache")
    if ignored:
        shown = ", ".join(f"{name}={getattr(recipe, name)!r}" for name in ignored)
        raise ValueError(
            f"{shown} would be ignored with task={recipe.task!r}, dataset_name={recipe.dataset_name!r} and "
            f"reward_funcs={recipe.reward_funcs}; leave it out"
        )


def reward_functions(recipe: RecipeArguments, max_completion_length: int) -> list[Any]:
    """The reward functions, which the recipe gives by name, by import path, or as `model:` and a model's name."""
    if recipe.reward_funcs is None and recipe.task is not None:
        return [TASKS[recipe.task].reward]
    found: list[Any] = []
    for name in recipe.reward_funcs or []:
        if name in REWARDS:
            found.append(REWARDS[name])
        elif name == "soft_overlong_punishment":
            found.append(get_soft_overlong_punishment(max_completion_length, recipe.soft_overlong_cache))
        elif name.startswith("model:"):
            found.append(name.removeprefix("model:"))
        elif is_import_path(name):
            found.append(load_function(name, field="reward_funcs"))
        else:
            raise ValueError(
                f"reward_funcs has {name!r}; choose from {[*REWARDS, 'soft_overlong_punishment']}, an import path "
                "'package.module:function', or 'model:' followed by the name of a reward model"
            )
    return found


def add_noise(
    recipe: RecipeArguments,
    functions: list[Any],
    weights: list[float] | None,
    *,
    seed: int,
    accuracy: str | None = None,
) -> tuple[list[Any], list[float] | None]:
    """The functions and weights with `reward_flip`: the accuracy reward flipped, and the true one with weight 0.

    `accuracy` is the name of the accuracy reward; default the first function.
    """
    if not recipe.reward_flip:
        return functions, weights
    names = [getattr(function, "__name__", function) for function in functions]
    if accuracy not in (None, *names) or not names:
        raise ValueError(
            f"reward_flip={recipe.reward_flip} flips the accuracy reward, but accuracy_reward={accuracy!r} is not one "
            f"of the reward functions {names}"
        )
    index = 0 if accuracy is None else names.index(accuracy)
    chosen = functions[index]
    noisy = flipped(chosen, recipe.reward_flip, seed=seed)
    weights = [*(weights or [1.0] * len(functions)), 0.0]
    return [*functions[:index], noisy, *functions[index + 1 :], measured(chosen)], weights


def load_data(
    recipe: RecipeArguments, wants_eval: bool
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset | None]:
    """Training and held-out prompts, with the columns `prompt` and, from a dataset, `solution`."""
    if recipe.task is not None:
        task = TASKS[recipe.task]
        held_out = task.dataset("test", recipe.task_eval_prompts) if wants_eval else None
        return task.dataset("train", recipe.task_train_prompts), held_out
    if recipe.eval_dataset_name is not None and not wants_eval:
        raise ValueError(
            f"eval_dataset_name={recipe.eval_dataset_name!r} would be ignored, because the run uses no held-out "
            "prompts; set eval_strategy (or include_test), or leave it out"
        )
    splits = read_splits(recipe, recipe.dataset_name, recipe.dataset_config)
    train = prepare(splits, recipe.dataset_train_split, recipe.dataset_name, recipe)
    if recipe.eval_dataset_name is not None:
        return train, load_held_out(recipe)
    return train, prepare(splits, recipe.dataset_test_split, recipe.dataset_name, recipe) if wants_eval else None


def load_held_out(recipe: RecipeArguments) -> Dataset | IterableDataset:
    """Only the held-out prompts; a file is read as a whole."""
    if recipe.task is not None:
        return TASKS[recipe.task].dataset("test", recipe.task_eval_prompts)
    name, config = recipe.held_out
    splits = read_splits(recipe, name, config, file_split=recipe.dataset_test_split)
    return prepare(splits, recipe.dataset_test_split, name, recipe)


def read_splits(
    recipe: RecipeArguments, name: str, config: str | None, *, file_split: str = "train"
) -> DatasetDict | IterableDatasetDict:
    """The splits of a dataset; a file is a single split."""
    path = Path(name)
    if not path.is_file():
        return load_dataset(name, config, streaming=recipe.dataset_streaming)
    if path.suffix not in FILE_BUILDERS:
        raise ValueError(f"{name!r} is a file; its name must end in one of {list(FILE_BUILDERS)}")
    if config is not None:
        raise ValueError(f"{name!r} is a file, which has no configuration {config!r}; leave it out")
    files = {file_split: str(path)}
    return load_dataset(FILE_BUILDERS[path.suffix], data_files=files, streaming=recipe.dataset_streaming)


def prepare(
    splits: DatasetDict | IterableDatasetDict, split: str, name: str, recipe: RecipeArguments
) -> Dataset | IterableDataset:
    """The prompts of a split, with the columns `prompt` (messages) and `solution`."""
    if split not in splits:
        elsewhere = "; set eval_dataset_name if the held-out prompts are elsewhere"
        remedy = elsewhere if split == recipe.dataset_test_split else ""
        raise ValueError(f"{name} has no split {split!r}; it has {list(splits)}{remedy}")
    data = splits[split]
    columns = data.column_names or [*next(iter(data), {})]
    for option in ("prompt_column", "answer_column"):
        column = getattr(recipe, option)
        if column not in columns:
            raise ValueError(f"{option}={column!r} is not in {name}; its columns are {columns}")
    check_columns(columns, name)

    def messages(prompt: Any, row: int) -> list[dict[str, Any]]:
        if fault := fault_of(prompt):
            raise ValueError(f"{name}: the prompt of row {row} {fault}; fix it or remove the row")
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if recipe.system_prompt and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": recipe.system_prompt}, *prompt]
        return prompt

    def add_prompts(rows: dict[str, list], places: list[int]) -> dict[str, list]:
        return {"prompt": [messages(*each) for each in zip(rows[recipe.prompt_column], places, strict=True)]}

    def add_solutions(rows: dict[str, list]) -> dict[str, list]:
        return {"solution": [solution_of(answer, recipe.answer_template) for answer in rows[recipe.answer_column]]}

    data = data.map(add_prompts, with_indices=True, batched=True)
    # Name the type, because it cannot be inferred if the first answers are all missing.
    features = data.features and Features({**data.features, "solution": Value("string")})
    data = data.map(add_solutions, batched=True, features=features)
    if isinstance(data, Dataset):
        warn_of_missing_answers(data, name, recipe)
    return data


def solution_of(answer: Any, template: str) -> str | None:
    """The answer as text, several joined by commas; `None` if one is missing, that is null, NaN or blank."""
    answers = answer if isinstance(answer, list) else [answer]
    texts = [as_text(each) for each in answers]
    if not texts or None in texts:
        return None
    return template.replace("{answer}", ", ".join(text for text in texts if text is not None))


def as_text(answer: Any) -> str | None:
    if isinstance(answer, float):
        if math.isnan(answer):
            return None
        if answer.is_integer():  # a whole number in a column that was read as floats because other answers are missing
            return str(int(answer))
    return None if answer is None or not str(answer).strip() else str(answer)


def warn_of_missing_answers(data: Dataset, name: str, recipe: RecipeArguments) -> None:
    missing = [index for index, solution in enumerate(data["solution"][:]) if solution is None]
    if missing:
        logger.warning(
            "%s: %d of %d prompts have no answer in answer_column=%r, the first in row %d. Reward functions get "
            "solution=None for them, and accuracy_reward does not score them",
            name,
            len(missing),
            len(data),
            recipe.answer_column,
            missing[0],
        )


def name_model(recipe: RecipeArguments, model: ModelConfig) -> str:
    """The model to start from: the named one, or else the embedded task's."""
    return model.model_name_or_path or str(TASKS[recipe.task].model_path)


def model_options(model: ModelConfig, training: GRPOConfig) -> dict[str, Any]:
    """The options to load the model with."""
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


def train(trainer: GRPOTrainer, recipe: RecipeArguments) -> None:
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
    """The reward function that measures accuracy, without the noise of `reward_flip`."""
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

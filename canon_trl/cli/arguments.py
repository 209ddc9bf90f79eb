"""The options that a command adds to the trainer's: data and rewards; how they are read and checked."""

import os
import sys
from argparse import ArgumentParser
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trl import ModelConfig, ScriptArguments

from canon_trl.cli.parser import Parser
from canon_trl.cli.rewards import NEED_MATH_VERIFY, REWARDS
from canon_trl.hook.data_checks import check_model_name
from canon_trl.publishing.model_card import is_on_hub
from canon_trl.recipes import read_recipe
from canon_trl.tasks import TASKS

FILE_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}

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
    task_train_prompts: int | None = field(
        default=None,
        metadata={"help": "Number of prompts from the embedded task to train on. Default: the task's, mostly 2048."},
    )
    task_eval_prompts: int | None = field(
        default=None,
        metadata={"help": "Number of held-out prompts from the embedded task. Default: the task's, mostly 512."},
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset or file of held-out prompts, with the same columns; the split of a dataset is "
            "dataset_test_split. Default: that split of dataset_name."
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
        default=None, metadata={"help": "System message for every prompt that does not start with one."}
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
            "help": "Probability below 0.5 of flipping the accuracy reward of a response from 0 to 1 or back, like "
            "a noisy verifier. The true reward is logged as `true_...` with weight 0. Default: 0."
        },
    )

    def task_size(self, split: str) -> int:
        """Number of prompts from the embedded task in the split "train" or "test"."""
        task = TASKS[str(self.task)]
        wanted, default = {
            "train": (self.task_train_prompts, task.train_prompts),
            "test": (self.task_eval_prompts, task.eval_prompts),
        }[split]
        return default if wanted is None else wanted

    @property
    def held_out(self) -> tuple[str | None, str | None]:
        """Name and configuration of the dataset with the held-out prompts."""
        if self.eval_dataset_name is not None:
            return self.eval_dataset_name, self.eval_dataset_config
        return self.dataset_name, self.dataset_config


def parse(argv: list[str] | None, *config_classes: type, command: str, embedded: str) -> tuple:
    """Return `RecipeArguments`, the given configs and `ModelConfig`, checked, from flags and a recipe.

    Args:
        argv: the flags. Default: those of the process.
        config_classes: the other classes of options that the command has.
        command: the name of the command, for `--help`.
        embedded: the recipe if the flags name neither a recipe nor data.
    """
    recipe, *configs, model = parse_unchecked(argv, *config_classes, command=command, embedded=embedded)
    check(recipe, model, rewarded=any(getattr(config, "policy_reward", None) for config in configs))
    check_nothing_ignored(recipe)
    return recipe, *configs, model


def parse_unchecked(argv: list[str] | None, *config_classes: type, command: str, embedded: str) -> tuple:
    """Like [`parse`], for a command whose data is named elsewhere."""
    classes = (RecipeArguments, *config_classes, ModelConfig)
    parser = Parser(classes, command=command)
    name, flags = split_config(argv)
    named = {flag.split("=")[0].replace("-", "_") for flag in flags if flag.startswith("-")}
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
    parser.check_names(flags)
    return parser.parse_args_and_config(flags)


def split_config(argv: list[str] | None) -> tuple[str | None, list[str]]:
    """Return the value of `--config`, and the other flags; without `argv`, of the process."""
    given = sys.argv[1:] if argv is None else argv
    flags = [part for flag in given for part in (flag.split("=", 1) if flag.startswith("--config=") else [flag])]
    if "--config" not in flags:
        return None, flags
    place = flags.index("--config")
    if place + 1 == len(flags):
        raise ValueError("--config is given without a value; it must be the path or the name of a recipe")
    return flags[place + 1], flags[:place] + flags[place + 2 :]


def option_in(argv: list[str] | None, option: str) -> Any:
    """Return the value that the flags, or else the recipe, give an option; `None` if neither does."""
    name, flags = split_config(argv)
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{option}")
    given = getattr(parser.parse_known_args(flags)[0], option)
    return given if given is not None or name is None else read_recipe(name).get(option)


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

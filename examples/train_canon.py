"""Train a model with CANON, from the embedded task on a laptop to a cluster.

    accelerate launch examples/train_canon.py                                      # embedded task, offline, minutes
    accelerate launch examples/train_canon.py --canon_metric length --canon_alpha 0.8
    accelerate launch --config_file accelerate_configs/zero3.yaml examples/train_canon.py \
        --config examples/configs/qwen2.5_math_7b_canon_inter.yaml                 # the paper's setting

Every option comes from a YAML file, from flags, or from both, a flag winning. The output folder gets the model with
its card, `metrics.csv`, `metrics.json` and `curves.png`.
"""

import logging
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config
from trl.rewards import (
    accuracy_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)

from canon_trl import CANONConfig, CANONTrainer
from canon_trl.evaluation import save_history
from canon_trl.imports import is_import_path, load_function
from canon_trl.tasks import TASKS

EMBEDDED = Path(__file__).parent / "configs" / "arithmetic.yaml"

REWARDS = {
    "accuracy_reward": accuracy_reward,
    "reasoning_accuracy_reward": reasoning_accuracy_reward,
    "think_format_reward": think_format_reward,
}
FILE_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
NEED_MATH_VERIFY = ("accuracy_reward", "reasoning_accuracy_reward")


@dataclass
class CANONScriptArguments(ScriptArguments):
    """Data and rewards: either an embedded task, or a dataset with a prompt and an answer column."""

    task: str | None = field(
        default=None, metadata={"help": f"Embedded task, one of {list(TASKS)}; brings its model, data and reward."}
    )
    task_train_prompts: int = field(default=2048, metadata={"help": "Prompts of the embedded task to train on."})
    task_eval_prompts: int = field(default=512, metadata={"help": "Held-out prompts of the embedded task."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the dataset with the prompt."})
    answer_column: str = field(
        default="answer",
        metadata={"help": "Column with the answer; reward functions get it as `solution` and under its own name."},
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message put before every prompt that does not begin with one."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Reward functions: {', '.join(REWARDS)}, soft_overlong_punishment, import paths "
            "`package.module:function`, or `model:` and the name of a reward model."
        },
    )
    soft_overlong_cache: int = field(
        default=1024, metadata={"help": "Tokens before the length limit in which soft_overlong_punishment sets in."}
    )


class CompactProgress(ProgressCallback):
    """A progress bar with the numbers that matter, in place of every logged number on a line of its own."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict | None = None, **kwargs
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None and "reward" in (logs or {}):
            shown = {"reward": "reward", "length": "completions/mean_length", "entropy": "entropy"}
            numbers = {label: logs.get(name) for label, name in shown.items()}
            self.training_bar.set_postfix({k: f"{float(v):.3g}" for k, v in numbers.items() if v is not None})


def parse(argv: list[str]) -> tuple[CANONScriptArguments, CANONConfig, ModelConfig]:
    """The options from flags and YAML; the embedded task's where neither a file nor a dataset is named."""
    names_its_data = any(
        flag.split("=")[0] in ("--config", "--dataset_name", "--task", "--help", "-h") for flag in argv
    )
    if not names_its_data:
        argv = ["--config", str(EMBEDDED), *argv]
    parser = TrlParser((CANONScriptArguments, CANONConfig, ModelConfig))
    script, training, model = parser.parse_args_and_config(argv, fail_with_unknown_args=True)
    check(script, training, model)
    return script, training, model


def check(script: CANONScriptArguments, training: CANONConfig, model: ModelConfig) -> None:
    if (script.task is None) == (script.dataset_name is None):
        raise ValueError(
            f"task={script.task!r} and dataset_name={script.dataset_name!r}: give exactly one of them, the data to "
            "train on"
        )
    if script.task is not None and script.task not in TASKS:
        raise ValueError(f"task={script.task!r} must be one of {list(TASKS)}")
    if script.task is None and not script.reward_funcs:
        raise ValueError("reward_funcs is empty; a dataset needs at least one reward function")
    if script.task is None and model.model_name_or_path is None:
        raise ValueError("model_name_or_path is missing")
    for name in script.reward_funcs or []:
        if name in NEED_MATH_VERIFY and find_spec("math_verify") is None:
            raise ImportError(f"reward_funcs has {name!r}, which needs math-verify; install canon-trl[math]")


def reward_functions(script: CANONScriptArguments, training: CANONConfig) -> list[Any]:
    """The reward functions by name, import path or, after `model:`, model name."""
    if not script.reward_funcs:
        return [TASKS[script.task].reward]
    found: list[Any] = []
    for name in script.reward_funcs:
        if name in REWARDS:
            found.append(REWARDS[name])
        elif name == "soft_overlong_punishment":
            found.append(get_soft_overlong_punishment(training.max_completion_length, script.soft_overlong_cache))
        elif name.startswith("model:"):
            found.append(name.removeprefix("model:"))
        elif is_import_path(name):
            found.append(load_function(name, field="reward_funcs"))
        else:
            raise ValueError(
                f"reward_funcs has {name!r}; choose from {[*REWARDS, 'soft_overlong_punishment']}, an import path "
                "'package.module:function' or 'model:' and the name of a reward model"
            )
    return found


def load_data(script: CANONScriptArguments, wants_eval: bool) -> tuple[Dataset, Dataset | None]:
    """Train and held-out prompts, with the columns `prompt` and, from a dataset, `solution`."""
    if script.task is not None:
        task = TASKS[script.task]
        held_out = task.dataset("test", script.task_eval_prompts) if wants_eval else None
        return task.dataset("train", script.task_train_prompts), held_out
    path = Path(script.dataset_name)
    if path.is_file():
        if path.suffix not in FILE_BUILDERS:
            raise ValueError(
                f"dataset_name={script.dataset_name!r} is a file that must end in one of {list(FILE_BUILDERS)}"
            )
        splits = load_dataset(FILE_BUILDERS[path.suffix], data_files=str(path))
    else:
        splits = load_dataset(script.dataset_name, script.dataset_config, streaming=script.dataset_streaming)
    train = prepare(splits, script.dataset_train_split, script)
    return train, prepare(splits, script.dataset_test_split, script) if wants_eval else None


def prepare(splits: DatasetDict, split: str, script: CANONScriptArguments) -> Dataset:
    if split not in splits:
        raise ValueError(f"{script.dataset_name} has no split {split!r}; it has {list(splits)}")
    data = splits[split]
    for option in ("prompt_column", "answer_column"):
        column = getattr(script, option)
        if data.column_names is not None and column not in data.column_names:
            raise ValueError(
                f"{option}={column!r} is not in {script.dataset_name}; its columns are {data.column_names}"
            )

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        prompt = row[script.prompt_column]
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if script.system_prompt and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": script.system_prompt}, *prompt]
        return {"prompt": prompt, "solution": str(row[script.answer_column])}

    return data.map(convert)


def main(argv: list[str]) -> CANONTrainer:
    script, training, model = parse(argv)
    wants_eval = training.eval_strategy != "no"
    train_data, eval_data = load_data(script, wants_eval)
    if model.model_name_or_path is None:
        model.model_name_or_path = str(TASKS[script.task].model_path)
    training.eval_on_start = wants_eval
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    trainer = CANONTrainer(
        model.model_name_or_path,
        reward_functions(script, training),
        training,
        train_data,
        eval_data,
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
    )
    trainer.remove_callback(ProgressCallback)
    if not training.disable_tqdm:
        trainer.add_callback(CompactProgress)
    accuracy = training.accuracy_reward or trainer.reward_func_names[0]
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    if wants_eval:
        held_out = f"eval_rewards/{accuracy}/mean"
        evaluations = [entry for entry in trainer.state.log_history if held_out in entry]
        if evaluations[-1]["step"] < trainer.state.global_step:
            trainer.evaluate()
            evaluations.append(trainer.state.log_history[-1])
        before, after = evaluations[0][held_out], evaluations[-1][held_out]

    trainer.save_model(training.output_dir)
    trainer.create_model_card(model_name=Path(training.output_dir).name, dataset_name=script.dataset_name)
    if trainer.is_world_process_zero():
        save_history(trainer.state.log_history, training.output_dir, accuracy_reward=accuracy)
    if wants_eval:
        trainer.accelerator.print(f"{accuracy} on held-out prompts: {before:.3f} before, {after:.3f} after training")
    trainer.accelerator.print(f"model, model card, metrics.csv, metrics.json and curves.png: {training.output_dir}")
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    return trainer


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(sys.argv[1:]).end()

"""Sample a reference model's rewards for every prompt: stage 1 of A*-PO, and raw material for difficulty filters.

    canon-trl values                                                               # embedded task, offline, a minute
    accelerate launch -m canon_trl values --config qwen2.5_1.5b_values

The output folder is a dataset. `train.parquet` and `test.parquet` contain the prompts and their columns with `rewards`
(one per response), `v_star` and `pass_rate`; a card records the settings. A killed run resumes where it stopped.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import HfApi

from canon_trl.cli.arguments import parse
from canon_trl.cli.data import load_data
from canon_trl.cli.rewards import add_noise, reward_functions
from canon_trl.cli.running import name_model
from canon_trl.cli.sampling import (
    SamplingArguments,
    SamplingTask,
    check_folder,
    check_options,
    check_wording,
    fingerprints,
    leave_processes,
    load_tokenizer,
    sample_missing,
    sampling_settings,
    start_processes,
)
from canon_trl.policy_losses.astar_po import PAPER
from canon_trl.publishing.citation import package_citation
from canon_trl.publishing.hub import explained_failure, upload_command
from canon_trl.publishing.model_card import cite, describe_data, describe_model
from canon_trl.sampling.chunks import ChunkLog, atomic_write, collect_records
from canon_trl.sampling.optimal_values import REWARDS, with_optimal_values
from canon_trl.sampling.scoring import Scorer

PROGRESS = ".progress/*"  # needed only to resume


@dataclass
class ValueArguments(SamplingArguments):
    """How to estimate the values."""

    output_dir: str = field(default="outputs/values", metadata={"help": "Folder to write the dataset to."})
    beta1: float = field(default=0.5, metadata={"help": "Temperature of the optimal value; 0 means the mean reward."})
    include_test: bool = field(default=True, metadata={"help": "Whether to sample held-out prompts too."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Dataset repository to push the result to."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta1 < math.inf:
            raise ValueError(f"beta1={self.beta1!r} must be finite and at least 0")


# The card has no `configs`. With them, `datasets` would keep loading what it once cached under the folder's name, even
# after the values are estimated again. Without them it finds the files by name.
def card(settings: dict[str, Any], data: str, pass_rates: dict[str, float], destination: str) -> str:
    named = ("model", "data", "eval_dataset_name")
    shown = {name: value for name, value in settings.items() if name not in named}
    held_out = settings["eval_dataset_name"]
    rows = "\n".join(f"| `{name}` | `{json.dumps(value)}` |" for name, value in shown.items())
    means = ", ".join(f"{rate:.3f} ({split})" for split, rate in pass_rates.items())
    return f"""---
tags:
- trl
- canon_trl
- astar_po
---

# Rewards of a reference model for every prompt

Columns: the prompts' own, `rewards` (of `num_samples` responses), `v_star` (the optimal value of
[A*-PO](https://huggingface.co/papers/2505.20686) with `beta1`) and `pass_rate`, the mean reward: {means}.

- Reference model: {describe_model(settings["model"])}
- Data: {describe_data(data, None)}{"" if held_out is None else f"; held-out prompts: {describe_data(held_out, None)}"}

| setting | value |
|---|---|
{rows}

Train on it with `accelerate launch -m canon_trl train --trainer astar_po --dataset_name {destination}`.

## Citations

{cite("A*-PO", PAPER.citation)}

{cite("canon_trl", package_citation())}
"""


def main(argv: list[str] | None = None) -> None:
    recipe, values, model = parse(argv, ValueArguments, command="values", embedded="arithmetic_values")
    state = start_processes()
    check_options(values, model, state)
    folder = Path(values.output_dir)
    check_folder(folder, "an estimation of values")
    name = name_model(recipe, model)
    splits = dict(zip(("train", "test"), load_data(recipe, wants_eval=values.include_test), strict=True))
    splits = {split: data for split, data in splits.items() if data is not None}
    for split, data in splits.items():
        if not isinstance(data, Dataset):
            raise TypeError(f"the {split} data is a {type(data).__name__}; it must be a Dataset, which has a length")
    tokenizer = load_tokenizer(name, model)
    for split, data in splits.items():
        check_wording(data, values, tokenizer, split)
    functions = reward_functions(recipe, values.max_completion_length)
    functions, weights = add_noise(recipe, functions, values.reward_weights, seed=values.seed)
    score = Scorer(functions, tokenizer, weights, values.reward_time_limit, values.chat_template_kwargs)

    settings = sampling_settings(recipe, values, model, name)
    tasks = [
        SamplingTask(
            name=split,
            data=data,
            sampling=values,
            record=score,
            log=ChunkLog(folder / ".progress" / split, settings | fingerprints(name, data), rank=state.process_index),
        )
        for split, data in splits.items()
    ]
    sample_missing(tasks, model, name, tokenizer, state, entropies=False)
    if state.is_main_process:
        done = {
            task.name: with_optimal_values(
                with_rewards(task.data, collect_records(task.data, task.log), name=task.name),
                beta1=values.beta1,
                filter_all_incorrect=False,
                name=task.name,
            )
            for task in tasks
        }
        data = recipe.dataset_name or f"the embedded task {recipe.task}"
        write(folder, done, settings | {"beta1": values.beta1}, data, values.push_to_hub)
    state.wait_for_everyone()


def with_rewards(data: Dataset, rewards: list[list[float | None]], *, name: str) -> Dataset:
    """Add the rewards to the data; prompts without any reward are dropped, because their value is unknown."""
    if REWARDS in data.column_names:
        data = data.remove_columns(REWARDS)
    data = data.add_column(REWARDS, rewards)
    unknown = [index for index, given in enumerate(rewards) if all(reward is None for reward in given)]
    if not unknown:
        return data
    if len(unknown) == len(data):
        raise ValueError(
            f"{name}: no response to any of the {len(data)} prompts was scored: every reward is None. A reward "
            "function returns None if it cannot parse the reference answer; check answer_column and answer_template"
        )
    print(
        f"{name}: dropping {len(unknown)} of {len(data)} prompts without a scored response; the first is prompt "
        f"{unknown[0]}"
    )
    return data.select(sorted({*range(len(data))} - {*unknown}))


def write(
    folder: Path, done: dict[str, Dataset], settings: dict[str, Any], data_name: str, repository: str | None
) -> None:
    pass_rates = {split: sum(data["pass_rate"]) / len(data) for split, data in done.items()}
    for split, data in done.items():
        with atomic_write(folder / f"{split}.parquet") as file:
            data.to_parquet(file)
    text = card(settings, data_name, pass_rates, repository or str(folder))
    with atomic_write(folder / "README.md") as file:
        file.write_text(text)
    for split, rate in pass_rates.items():
        print(f"{split}: {len(done[split])} prompts, pass rate {rate:.3f}: {folder / split}.parquet")
    if repository is not None:
        api = HfApi()
        with explained_failure(folder, upload_command(repository, folder, dataset=True, exclude=[PROGRESS])):
            api.create_repo(repository, repo_type="dataset", exist_ok=True)
            api.upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder, ignore_patterns=PROGRESS)


def run(argv: list[str]) -> None:
    """Estimate, then end the process."""
    main(argv)
    leave_processes()

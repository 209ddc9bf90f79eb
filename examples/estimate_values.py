"""Sample what a reference model earns on every prompt: stage 1 of A*-PO, and raw material for difficulty filters.

    accelerate launch examples/estimate_values.py                                  # embedded task, offline, a minute
    accelerate launch examples/estimate_values.py --config examples/configs/qwen2.5_1.5b_values.yaml

The output folder is a dataset: the prompts and their columns, with `rewards` (one a response), `v_star` and
`pass_rate`, as `train.parquet` and `test.parquet`, and a card with the settings. A run that was killed goes on where
it was.
"""

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from datasets import Dataset
from recipe import CONFIGS, RecipeArguments, load_data, name_model, parse, reward_functions
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from canon_trl.sampling.optimal_values import with_optimal_values
from canon_trl.sampling.value_estimation import (
    RewardLog,
    Sampler,
    Scorer,
    TransformersSampler,
    VLLMSampler,
    collect_rewards,
    estimate_rewards,
    missing_chunks,
)


@dataclass
class ValueArguments:
    """How values are estimated."""

    output_dir: str = field(default="outputs/values", metadata={"help": "Folder of the dataset that is written."})
    num_samples: int = field(default=8, metadata={"help": "Responses to a prompt."})
    beta1: float = field(default=0.5, metadata={"help": "Temperature of the optimal value; 0 takes the mean reward."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Share of the probability mass that is sampled from."})
    top_k: int = field(default=0, metadata={"help": "Number of tokens that are sampled from; 0 is all."})
    max_completion_length: int = field(default=256, metadata={"help": "Tokens of a response at most."})
    chunk_prompts: int = field(default=64, metadata={"help": "Prompts that a rank samples at a time."})
    include_test: bool = field(default=True, metadata={"help": "Whether held-out prompts are sampled too."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "Weights of the reward functions."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    use_vllm: bool = field(default=False, metadata={"help": "Sample with vLLM."})
    vllm_kwargs: str = field(default="{}", metadata={"help": "Options of `vllm.LLM` as JSON."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Dataset repository to push the result to."})

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_completion_length", "chunk_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature!r} must be positive")
        if not 0 <= self.beta1 < math.inf:
            raise ValueError(f"beta1={self.beta1!r} must be finite and at least 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p!r} must lie in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k!r} must be at least 0; 0 is all tokens")
        if self.vllm_kwargs != "{}" and not self.use_vllm:
            raise ValueError(f"vllm_kwargs={self.vllm_kwargs!r} would be ignored: use_vllm is False")


def make_sampler(
    values: ValueArguments, model: ModelConfig, name: str, tokenizer: Any, state: PartialState
) -> Sampler:
    shared = {"num_samples": values.num_samples, "temperature": values.temperature, "top_p": values.top_p}
    if not values.use_vllm:
        options = {"revision": model.model_revision, "attn_implementation": model.attn_implementation}
        loaded = AutoModelForCausalLM.from_pretrained(name, dtype=model.dtype or "auto", **options)
        length = {"max_new_tokens": values.max_completion_length, "top_k": values.top_k}
        return TransformersSampler(loaded.to(state.device), tokenizer, **shared, **length)
    from vllm import LLM

    options = {"dtype": model.dtype or "auto", "revision": model.model_revision, "seed": values.seed}
    if state.num_processes > 1:  # an engine on every rank
        options["distributed_executor_backend"] = "external_launcher"
    engine = LLM(model=name, **options | json.loads(values.vllm_kwargs))
    # vLLM says -1 where transformers says 0
    length = {"max_tokens": values.max_completion_length, "top_k": values.top_k or -1}
    return VLLMSampler(engine, tokenizer, **shared, **length)


def card(settings: dict[str, Any], pass_rates: dict[str, float], destination: str) -> str:
    rows = "\n".join(f"| `{name}` | `{json.dumps(value)}` |" for name, value in settings.items())
    means = ", ".join(f"{rate:.3f} ({split})" for split, rate in pass_rates.items())
    files = "\n".join(f"  - split: {split}\n    path: {split}.parquet" for split in pass_rates)
    return f"""---
tags:
- canon_trl
- astar_po
configs:
- config_name: default
  data_files:
{files}
---

# What a reference model earns on every prompt

Columns: those of the prompts, `rewards` (of `num_samples` responses), `v_star` (the optimal value of
[A*-PO](https://huggingface.co/papers/2505.20686) with `beta1`) and `pass_rate`, the mean reward: {means}.

| setting | value |
|---|---|
{rows}

Train on it with `accelerate launch examples/train_astar_po.py --dataset_name {destination}`.
"""


def check_options(values: ValueArguments, model: ModelConfig, state: PartialState) -> None:
    """What neither stage of the sampling could honour."""
    if values.use_vllm and find_spec("vllm") is None:
        raise ImportError("use_vllm=True needs vllm; install canon-trl[vllm]")
    for name in ("use_peft", "load_in_8bit", "load_in_4bit"):
        if getattr(model, name):
            raise ValueError(f"{name}=True would be ignored: values are those of the reference model as it is")
    parallel = json.loads(values.vllm_kwargs).get("tensor_parallel_size", 1)
    if parallel > 1 and state.num_processes > 1:
        raise ValueError(
            f"vllm_kwargs has tensor_parallel_size={parallel}, but each of the {state.num_processes} processes has an "
            "engine of its own; start one process"
        )


def main(argv: list[str]) -> None:
    recipe, values, model = parse(argv, ValueArguments, embedded=CONFIGS / "arithmetic_values.yaml")
    # Without `cpu` each process on a machine of CPUs alone would take itself for the only one. A rank waits for the
    # others until their last chunk.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    check_options(values, model, state)
    name = name_model(recipe, model)
    splits = dict(zip(("train", "test"), load_data(recipe, wants_eval=values.include_test), strict=True))
    splits = {split: data for split, data in splits.items() if data is not None}
    for split, data in splits.items():
        if not isinstance(data, Dataset):
            raise TypeError(f"{split} data is a {type(data).__name__}; it must be a Dataset, which has a length")
    tokenizer = AutoTokenizer.from_pretrained(name, revision=model.model_revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    score = Scorer(reward_functions(recipe, values.max_completion_length), tokenizer, values.reward_weights)

    settings = settings_of(recipe, values, model, name)
    folder = Path(values.output_dir)
    logs = {
        split: RewardLog(
            folder / ".progress" / split,
            settings | {"prompts": len(data), "fingerprint": fingerprint(data)},
            rank=state.process_index,
        )
        for split, data in splits.items()
    }
    missing = {
        split: missing_chunks(data, logs[split], chunk_size=values.chunk_prompts) for split, data in splits.items()
    }
    state.wait_for_everyone()
    if any(missing.values()):
        sample = make_sampler(values, model, name, tokenizer, state)
        for split, data in splits.items():
            share = missing[split][state.process_index :: state.num_processes]
            chunks = tqdm(share, desc=f"{split} chunks of rank 0", disable=not state.is_main_process)
            sizes = {"chunk_size": values.chunk_prompts, "seed": values.seed}
            estimate_rewards(data, sample, score, logs[split], chunks=chunks, **sizes)
    state.wait_for_everyone()
    if state.is_main_process:
        done = {
            split: with_optimal_values(
                collect_rewards(data, logs[split]), beta1=values.beta1, filter_all_incorrect=False, name=split
            )
            for split, data in splits.items()
        }
        write(folder, done, settings | {"beta1": values.beta1}, values.push_to_hub)
    state.wait_for_everyone()
    state.destroy_process_group()


def settings_of(recipe: RecipeArguments, values: ValueArguments, model: ModelConfig, name: str) -> dict[str, Any]:
    """All that the rewards depend on."""
    of_no_effect = ("output_dir", "beta1", "push_to_hub", "include_test", "vllm_kwargs")
    settings = {key: value for key, value in asdict(values).items() if key not in of_no_effect}
    settings |= {"model": name, "data": recipe.task or recipe.dataset_name}
    settings |= {key: getattr(recipe, key) for key in ("reward_funcs", "soft_overlong_cache")}
    return settings | {key: getattr(model, key) for key in ("model_revision", "dtype", "attn_implementation")}


def fingerprint(data: Dataset) -> str:
    """Of the contents: the order of the prompts and all that rewards may read."""
    return datasets.fingerprint.Hasher.hash(list(data))


def write(folder: Path, done: dict[str, Dataset], settings: dict[str, Any], repository: str | None) -> None:
    pass_rates = {split: sum(data["pass_rate"]) / len(data) for split, data in done.items()}
    for split, data in done.items():
        data.to_parquet(folder / f"{split}.parquet")
    text = card(settings, pass_rates, repository or str(folder))
    (folder / "README.md").write_text(text)
    for split, rate in pass_rates.items():
        print(f"{split}: {len(done[split])} prompts, pass rate {rate:.3f}: {folder / split}.parquet")
    if repository is not None:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, repo_type="dataset", exist_ok=True)
        api.upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder, ignore_patterns=".progress/*")


if __name__ == "__main__":
    main(sys.argv[1:])

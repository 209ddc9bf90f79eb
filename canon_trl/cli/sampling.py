"""Sample responses to prompts on one rank or several, with transformers or vLLM."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from datasets import Dataset
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from canon_trl.cli.arguments import RecipeArguments
from canon_trl.cli.errors import begin_work
from canon_trl.sampling.chunks import ChunkLog, Recorder, missing_chunks, sample_chunks
from canon_trl.sampling.samplers import check_distribution, make_sampler, prompt_ids

# Files that show which command wrote a folder. Values keep progress at the top level, evaluations one level below.
OUTPUTS = {
    "a training run": ("config.json", "adapter_config.json", "trainer_state.json", "checkpoint-*"),
    "an estimation of values": (".progress",),
    "an evaluation": ("summary.json", "*/.progress"),
    "a probe": ("probe.json", ".probe"),
}

LOGPROBS = "processed_logprobs"  # of the distribution that vLLM samples from, not of the unprocessed one


@dataclass
class SamplingArguments:
    """How to sample and score responses."""

    num_samples: int = field(default=8, metadata={"help": "Number of responses per prompt."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Share of the probability mass to sample from."})
    top_k: int = field(default=0, metadata={"help": "Number of likeliest tokens to sample from; 0 is all."})
    min_p: float | None = field(
        default=None, metadata={"help": "Minimum probability of a sampled token, as a share of the likeliest token's."}
    )
    repetition_penalty: float = field(default=1.0, metadata={"help": "Penalty on repeated tokens; 1 is none."})
    stop_strings: list[str] | None = field(default=None, metadata={"help": "Texts that end a response."})
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "Options of the chat template as JSON, the same as in training."},
    )
    max_completion_length: int = field(default=256, metadata={"help": "Maximum number of tokens per response."})
    chunk_prompts: int = field(default=64, metadata={"help": "Number of prompts that a rank samples at a time."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "Weights of the reward functions."})
    reward_time_limit: float | None = field(
        default=None, metadata={"help": "Maximum seconds per call of a reward function. Default: no limit."}
    )
    seed: int = field(default=0, metadata={"help": "Seed for sampling."})
    use_vllm: bool = field(default=False, metadata={"help": "Sample with vLLM."})
    vllm_kwargs: str = field(default="{}", metadata={"help": "Options of `vllm.LLM` as JSON."})

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_completion_length", "chunk_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")
        check_distribution(self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty)
        if isinstance(self.chat_template_kwargs, str):
            self.chat_template_kwargs = json.loads(self.chat_template_kwargs)
        if not isinstance(self.chat_template_kwargs, dict | None):
            raise ValueError(f"chat_template_kwargs={self.chat_template_kwargs!r} must map option names to values")
        if self.vllm_kwargs != "{}" and not self.use_vllm:
            raise ValueError(f"vllm_kwargs={self.vllm_kwargs!r} would be ignored: use_vllm is False")
        mode = json.loads(self.vllm_kwargs).get("logprobs_mode", LOGPROBS)
        if mode != LOGPROBS:
            raise ValueError(
                f"vllm_kwargs has logprobs_mode={mode!r}; must be {LOGPROBS!r}, which is the default here"
            )


@dataclass
class SamplingTask:
    """Prompts to sample, and what to record of their responses."""

    name: str
    data: Dataset
    sampling: SamplingArguments
    record: Recorder
    log: ChunkLog


CARD = "README.md"  # describes a model without changing it


def start_processes() -> PartialState:
    # Without `cpu`, each process on a machine without accelerators would believe that it is the only one. The timeout
    # is long because a rank waits until the others finish their last chunk.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))


def leave_processes() -> None:
    """End the process group; callers of a command's `main` may still need the processes."""
    PartialState().destroy_process_group()


def check_options(sampling: SamplingArguments, model: ModelConfig, state: PartialState) -> None:
    """Raise an error for options that sampling cannot honour."""
    folder = Path(model.model_name_or_path or "")
    if sampling.use_vllm and (folder / "adapter_config.json").is_file() and not (folder / "config.json").exists():
        raise ValueError(
            f"model_name_or_path={model.model_name_or_path!r} is an adapter, which vLLM cannot load as a model; merge "
            "it into its base model, or sample without use_vllm"
        )
    if sampling.use_vllm and find_spec("vllm") is None:
        raise ImportError("use_vllm=True needs vllm; install canon-trl[vllm]")
    for name in ("use_peft", "load_in_8bit", "load_in_4bit"):
        if getattr(model, name):
            raise ValueError(f"{name}=True would be ignored: the model is sampled as it is")
    parallel = json.loads(sampling.vllm_kwargs).get("tensor_parallel_size", 1)
    if parallel > 1 and state.num_processes > 1:
        raise ValueError(
            f"vllm_kwargs has tensor_parallel_size={parallel}, but each of the {state.num_processes} processes has a "
            "separate engine; start one process"
        )


def check_folder(folder: Path, kind: str, *, field: str = "output_dir") -> None:
    """Raise an error if another command wrote the folder: two would overwrite each other's card or mix their files."""
    for owner, patterns in OUTPUTS.items():
        found = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
        if found and owner != kind:
            raise ValueError(
                f"{field}={str(folder)!r} contains {found[0]}, so it belongs to {owner}; name another {field}"
            )


def load_tokenizer(name: str, model: ModelConfig) -> Any:
    # With None, transformers asks on the terminal whether to run a model's own code.
    tokenizer = AutoTokenizer.from_pretrained(name, revision=model.model_revision, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_wording(data: Dataset, sampling: SamplingArguments, tokenizer: Any, name: str) -> None:
    """Check that the model's chat template can format the prompts, before the model is loaded."""
    prompt = data[0]["prompt"]
    if not isinstance(prompt, str) and tokenizer.chat_template is None:
        remedy = "; set chat_template_path" if hasattr(sampling, "chat_template_path") else ""
        raise ValueError(f"{name}: the prompts are conversations, but the tokenizer has no chat template{remedy}")
    try:
        prompt_ids(tokenizer, [prompt], sampling.chat_template_kwargs)
    except Exception as error:
        raise ValueError(
            f"{name}: the chat template fails on the first prompt with "
            f"chat_template_kwargs={sampling.chat_template_kwargs!r}: {error}"
        ) from error


def sampling_settings(
    recipe: RecipeArguments, sampling: SamplingArguments, model: ModelConfig, name: str
) -> dict[str, Any]:
    """Return everything that a response and its rewards depend on."""
    fields = SamplingArguments.__dataclass_fields__.keys() - {"vllm_kwargs", "reward_time_limit"}
    settings = {key: value for key, value in asdict(sampling).items() if key in fields}
    settings |= {"model": name, "data": recipe.task or recipe.dataset_name}
    settings |= {key: getattr(recipe, key) for key in ("eval_dataset_name", "reward_funcs", "soft_overlong_cache")}
    settings |= {"reward_flip": recipe.reward_flip} if recipe.reward_flip else {}
    settings |= {key: getattr(model, key) for key in ("model_revision", "dtype", "attn_implementation")}
    return settings


def fingerprints(name: str, data: Dataset) -> dict[str, Any]:
    """Return fingerprints of the data (prompts, order, columns that rewards may read) and of a local model's files."""
    paths = [path for path in sorted(Path(name).glob("*")) if path.is_file() and path.name != CARD]
    files = [(path.name, path.stat()) for path in paths]
    weights = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in files]
    hash_of = datasets.fingerprint.Hasher.hash
    return {"prompts": len(data), "fingerprint": hash_of(list(data)), "model_files": hash_of(weights)}


def sample_missing(
    tasks: Sequence[SamplingTask],
    model: ModelConfig,
    name: str,
    tokenizer: Any,
    state: PartialState,
    *,
    entropies: bool,
) -> None:
    """Sample the chunks missing from the logs, each rank its share; load the model once, and only if needed."""
    missing = [missing_chunks(task.data, task.log, chunk_size=task.sampling.chunk_prompts) for task in tasks]
    state.wait_for_everyone()
    loaded = load_model(tasks[0].sampling, model, name, state) if any(missing) else None
    begin_work()
    if loaded is not None:
        for task, chunks in zip(tasks, missing, strict=True):
            share = tqdm(
                chunks[state.process_index :: state.num_processes],
                desc=f"{task.name} chunks of rank 0",
                disable=not state.is_main_process,
            )
            sample = make_sampler(
                loaded, tokenizer, task.sampling, use_vllm=task.sampling.use_vllm, entropies=entropies
            )
            sizes = {"chunk_size": task.sampling.chunk_prompts, "seed": task.sampling.seed}
            sample_chunks(task.data, sample, task.record, task.log, chunks=share, **sizes)
    state.wait_for_everyone()


def load_model(sampling: SamplingArguments, model: ModelConfig, name: str, state: PartialState) -> Any:
    """Return the model, or its vLLM engine."""
    if not sampling.use_vllm:
        options = {"revision": model.model_revision, "attn_implementation": model.attn_implementation}
        options["trust_remote_code"] = False
        return AutoModelForCausalLM.from_pretrained(name, dtype=model.dtype or "auto", **options).to(state.device)
    from vllm import LLM

    options = {"dtype": model.dtype or "auto", "revision": model.model_revision, "seed": sampling.seed}
    options["logprobs_mode"] = LOGPROBS
    if state.num_processes > 1:  # an engine on every rank
        options["distributed_executor_backend"] = "external_launcher"
    return LLM(model=name, **options | json.loads(sampling.vllm_kwargs))

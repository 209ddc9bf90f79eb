"""Small, real training runs on the embedded task."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from canon_trl import CANONConfig, CANONTrainer
from canon_trl.evaluation import RunReport
from canon_trl.tasks import TASKS

TASK = TASKS["arithmetic"]

# Every training run ends with a full garbage collection. Without the freeze, scanning the objects of torch,
# transformers and TRL takes longer than the run itself.
gc.collect()
gc.freeze()

OPTIONS = {
    "max_steps": 3,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "max_completion_length": 12,
    "learning_rate": 1e-3,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}

ONE_ROLLOUT = {"max_steps": 1, "learning_rate": 0.0}


def prompts(size: int = 64) -> Dataset:
    return TASK.dataset("train", size, seed=0)


def base_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(TASK.model_path)


def make_trainer(
    folder: Path | str,
    trainer_class: type = CANONTrainer,
    config_class: type = CANONConfig,
    trainer_options: dict[str, Any] | None = None,
    model: Path = TASK.model_path,
    reports: bool = False,
    **options: Any,
) -> Any:
    """Make a trainer; without `reports` it draws no curves, which takes as long as a short run."""
    arguments = {"reward_funcs": TASK.reward, "train_dataset": prompts()} | (trainer_options or {})
    config = config_class(str(folder), **(OPTIONS | options))
    trainer = trainer_class(str(model), args=config, **arguments)
    if not reports:
        trainer.remove_callback(RunReport)
    return trainer


NO_MODEL = "a-model-that-does-not-exist"


def config(**options):
    """Return a config with the options above, for tests of the errors that it raises."""
    return CANONConfig("out", **(OPTIONS | options))


def build(trainer_options=None, **options):
    """Build a trainer whose model cannot be loaded, for tests of errors that are raised before loading."""
    arguments = {"reward_funcs": TASK.reward, "train_dataset": prompts(8)} | (trainer_options or {})
    return CANONTrainer(NO_MODEL, args=config(**options), **arguments)


def save_mixture_of_experts(folder: Path) -> Path:
    """Save a small untrained mixture of experts with the embedded task's tokenizer and a routing loss weight 0.5."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=len(tokenizer), **sizes, **heads, **experts, **ends))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def logged(trainer: Any) -> list[dict[str, float]]:
    """Return the log entry of every training step, without the keys that depend on time."""
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{key: value for key, value in entry.items() if "time" not in key} for entry in steps]


def assert_same_parameters(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    different = [name for name in want if not torch.equal(got[name], want[name])]
    assert not different, f"{len(different)} of {len(want)} parameters differ, the first is {different[0]}"


def assert_same_but_for_rounding(got: Any, want: Any) -> None:
    """Compare nested lists and dicts: floats to 1e-5, everything else exactly.

    The order of additions depends on the number of ranks and threads and on the processor.
    """
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert_same_but_for_rounding(got[key], value)
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want)
        for mine, others in zip(got, want, strict=True):
            assert_same_but_for_rounding(mine, others)
    else:
        assert got == (pytest.approx(want, rel=1e-5, abs=1e-5) if isinstance(want, float) else want)


def assert_resumes(make: Callable[..., Any], folder: Path, **options: Any) -> list[Any]:
    """Check that a run of four steps resumed from each checkpoint ends like the whole run; return all trainers."""
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1} | options
    whole = make(folder / "whole", **options)
    whole.train()
    trainers = [whole]
    for step in (1, 2, 3):
        torch.manual_seed(step)  # only the checkpoint may carry over
        resumed = make(folder / str(step), **options)
        resumed.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{step}"))
        assert_same_parameters(parameters(resumed), parameters(whole))
        assert logged(resumed) == logged(whole)
        trainers.append(resumed)
    return trainers


def leave() -> NoReturn:
    """End the process of one rank after all ranks have finished, without tearing down the interpreter.

    DeepSpeed and DDP keep their gloo groups alive, and one of their threads may abort the interpreter during teardown.
    """
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def length_reward(completions: list[str], **kwargs: Any) -> list[float]:
    """A graded reward, unlike 0/1 accuracy."""
    return [len(completion) / 16 for completion in completions]


def byte_tokenizer(
    *added: str, eos_token: str = "<|im_end|>", pad_token: str = "<|endoftext|>"
) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, for texts that the embedded task's tokenizer cannot write."""
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos_token, pad_token=pad_token)
    tokenizer.add_tokens(list(added))
    tokenizer.padding_side = "left"
    return tokenizer


def rollout_with_tool(prompts, trainer):
    """A `rollout_func` that returns `1#1`, `11#1` and so on; the second-to-last token comes from a tool."""
    tokenizer = trainer.processing_class
    prompt_ids = tokenizer(prompts)["input_ids"]
    completion_ids = [tokenizer("1" * (1 + row % 3) + "#1")["input_ids"] for row in range(len(prompts))]
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "logprobs": [[-float(row + 1)] * len(ids) for row, ids in enumerate(completion_ids)],
        "env_mask": [[1] * (len(ids) - 2) + [0, 1] for ids in completion_ids],
    }

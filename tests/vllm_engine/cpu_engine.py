"""TRL's colocated vLLM on a CPU, for the tests here and for the benchmark."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
# In GiB. Without it vLLM takes a share of the machine's memory and runs the model once to find out how much is left.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


@contextmanager
def vllm_on_cpu() -> Iterator[None]:
    """Let TRL's colocated vLLM run on CPU: exact, without compilation, and one engine for all trainers alike.

    Trainers with the same model, batch size and lengths share an engine, one after the other: each loads its weights
    into it before its first rollout, but an earlier trainer would then generate with the weights of a later one.
    """
    import vllm._custom_ops as ops
    from trl.generation import vllm_generation

    new_engine = vllm_generation.LLM

    @cache
    def engine(**settings: Any) -> Any:
        # vLLM seeds the generator that tokens are sampled with, which would change the first trainer's rollouts only.
        with torch.random.fork_rng():
            # TRL leaves both to vLLM, which would round a float32 model to bfloat16, so that importance sampling
            # corrects for the rounding, and would compile it, which takes longer than all tests together.
            return new_engine(**settings, dtype="float32", enforce_eager=True)

    def shared_engine(**settings: Any) -> Any:
        llm = engine(**settings)
        # TRL sets them for vLLM; left behind, they would make every later trainer a distributed one.
        for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            os.environ.pop(variable, None)
        return llm

    # vLLM would repack linear weights for oneDNN and drop the originals, which TRL's weight sync writes to: it fails
    # with "'Parameter' object has no attribute 'weight_loader'".
    with patch.object(ops, "_supports_onednn", False), patch.object(vllm_generation, "LLM", shared_engine):
        yield

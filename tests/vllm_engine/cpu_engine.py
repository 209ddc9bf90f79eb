"""TRL's colocated vLLM on a CPU, for these tests and the benchmark."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
# In GiB. Without it vLLM takes a share of the machine's memory and profiles the model to measure the rest.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


@contextmanager
def vllm_on_cpu() -> Iterator[None]:
    """Let TRL's colocated vLLM run on a CPU in float32, without compilation and with one engine for similar trainers.

    Trainers with the same model, batch size and lengths share an engine. Use them one after the other: each loads its
    weights before its first rollout, after which an earlier trainer would generate with the weights of a later one.
    """
    import vllm._custom_ops as ops
    from trl.generation import vllm_generation

    new_engine = vllm_generation.LLM

    @cache
    def engine(**settings: Any) -> Any:
        # vLLM seeds the generator of sampling, which would change the rollouts of the first trainer only.
        with torch.random.fork_rng():
            # TRL sets neither option. vLLM would round a float32 model to bfloat16, for which importance sampling then
            # corrects, and would compile it, which takes longer than all tests together.
            return new_engine(**settings, dtype="float32", enforce_eager=True)

    def shared_engine(**settings: Any) -> Any:
        llm = engine(**settings)
        # TRL sets these for vLLM. If they stayed, every later trainer would be a distributed one.
        for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            os.environ.pop(variable, None)
        return llm

    # vLLM would repack linear weights for oneDNN and drop the originals that TRL's weight sync writes to, which fails
    # with "'Parameter' object has no attribute 'weight_loader'".
    with patch.object(ops, "_supports_onednn", False), patch.object(vllm_generation, "LLM", shared_engine):
        yield

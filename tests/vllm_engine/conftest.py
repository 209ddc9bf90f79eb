"""What the tests on the real vLLM engine share. They need the environment that `install.sh` builds."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
# In GiB. Without it vLLM takes a share of the machine's memory and runs the model once to find out how much is left.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import pytest
import torch
from smollm2 import save_smollm2


@pytest.fixture(scope="session", autouse=True)
def vllm_on_cpu() -> Iterator[None]:
    """Let TRL's colocated vLLM run on CPU: exact, without compilation, and one engine for all trainers alike.

    Trainers with the same model, batch size and lengths share an engine, one after the other: each loads its weights
    into it before its first rollout, but an earlier trainer would then generate with the weights of a later one.
    """
    ops = pytest.importorskip("vllm._custom_ops", reason="needs the environment that install.sh builds")
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

    with pytest.MonkeyPatch.context() as patch:
        # vLLM would repack linear weights for oneDNN and drop the originals, which TRL's weight sync writes to: it
        # fails with "'Parameter' object has no attribute 'weight_loader'".
        patch.setattr(ops, "_supports_onednn", False)
        patch.setattr(vllm_generation, "LLM", shared_engine)
        yield


@pytest.fixture(scope="session")
def smollm2(pytestconfig: pytest.Config) -> Path:
    """Directory of SmolLM2-135M-Instruct, converted once and kept in pytest's cache (`--cache-clear` drops it)."""
    return save_smollm2(pytestconfig.cache.mkdir("smollm2") / "checkpoint")

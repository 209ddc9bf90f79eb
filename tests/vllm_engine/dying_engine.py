"""A training run whose vLLM engine fails during the second rollout; `test_stages_vllm.py` starts it."""

import sys
from typing import Any

from cpu_engine import vllm_on_cpu
from test_canon_vllm import make


def run(model: str, folder: str) -> None:
    trainer = make(model, folder, max_steps=3, save_strategy="steps", save_steps=1)
    engine = trainer.vllm_generation.llm.llm_engine
    step, steps = engine.step, 0

    def step_or_die() -> Any:
        nonlocal steps
        steps += trainer.state.global_step == 1
        if steps == 5:
            raise RuntimeError("the engine is dead")
        return step()

    engine.step = step_or_die
    trainer.train()


if __name__ == "__main__":
    with vllm_on_cpu():
        run(*sys.argv[1:])

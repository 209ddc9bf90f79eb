"""A training run that kills itself with SIGKILL at a named point; `test_killed_training.py` starts it."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW
from toy import make_trainer
from transformers import TrainerState

OPTIONS = {
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "num_iterations": 2,
    "optim": "adamw_torch",
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_generation(trainer: Any) -> None:
    """Kill the run at the fifth token of the second rollout; the first rollout has at most 12 tokens."""
    passes = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        passes.append(trainer.state.global_step)
        if not torch.is_grad_enabled() and passes.count(2) == 5:
            kill()

    trainer.model.register_forward_pre_hook(count, with_kwargs=True)


def in_optimiser_step(trainer: Any) -> None:
    """Kill the run after the third step has updated half of the weights."""
    step = AdamW.step

    def update_half(optimizer: AdamW, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 2:
            for group in optimizer.param_groups:
                group["params"] = group["params"][: len(group["params"]) // 2]
            step(optimizer, *args, **kwargs)
            kill()
        return step(optimizer, *args, **kwargs)

    AdamW.step = update_half


def before_file(trainer: Any, *, name: str) -> None:
    """Kill the run before it writes this file of the third checkpoint."""
    save = torch.save

    def save_or_die(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if str(file).endswith(os.path.join("checkpoint-3", name)):
            kill()
        save(content, file, *args, **kwargs)

    torch.save = save_or_die


def after_half_of_the_weights(trainer: Any) -> None:
    """Kill the run when it has written half of the weights of the third checkpoint."""
    save = trainer.save_model

    def save_half(folder: str, *args: Any, **kwargs: Any) -> None:
        save(folder, *args, **kwargs)
        if trainer.state.global_step == 3:
            weights = Path(folder, "model.safetensors")
            os.truncate(weights, weights.stat().st_size // 2)
            kill()

    trainer.save_model = save_half


def before_the_mark(trainer: Any) -> None:
    """Kill the run when the third checkpoint lacks only the file that marks it as complete."""
    save = TrainerState.save_to_json

    def save_and_die(state: TrainerState, path: str) -> None:
        """Write the last file of transformers, which only the mark follows."""
        save(state, path)
        if state.global_step == 3:
            kill()

    TrainerState.save_to_json = save_and_die


POINTS: dict[str, Callable[[Any], None]] = {
    "generation": in_generation,
    "the optimiser's step": in_optimiser_step,
    "a checkpoint, half of the weights": after_half_of_the_weights,
    "a checkpoint, before the optimiser": partial(before_file, name="optimizer.pt"),
    "a checkpoint, before the random state": partial(before_file, name="rng_state.pth"),
    "a checkpoint, before the mark": before_the_mark,
}


def run(folder: str, point: str) -> None:
    trainer = make_trainer(folder, **OPTIONS)
    POINTS[point](trainer)
    trainer.train()

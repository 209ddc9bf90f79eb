"""A training run that kills itself with SIGKILL at a point that is named; `test_killed_training.py` starts it."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW
from toy import make_trainer

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


def at_call(number: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the function, or at its call of that number die instead."""
    at_call.counts[function] = at_call.counts.get(function, 0) + 1
    return kill() if at_call.counts[function] == number else function(*args, **kwargs)


at_call.counts = {}


def in_generation(trainer: Any) -> None:
    """At the fifth token of the second rollout: 12 tokens are the most of the first one."""
    passes = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        passes.append(trainer.state.global_step)
        if not torch.is_grad_enabled() and passes.count(2) == 5:
            kill()

    trainer.model.register_forward_pre_hook(count, with_kwargs=True)


def in_optimiser_step(trainer: Any) -> None:
    """When some weights of the third step have been updated and others not."""
    step = AdamW.step

    def half(optimizer: AdamW, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 2:
            for group in optimizer.param_groups:
                group["params"] = group["params"][: len(group["params"]) // 2]
            step(optimizer, *args, **kwargs)
            kill()
        return step(optimizer, *args, **kwargs)

    AdamW.step = half


def in_checkpoint(trainer: Any, *, before: str) -> None:
    """While the third checkpoint is being written: before this part of it."""
    setattr(trainer, before, partial(at_call, 3, getattr(trainer, before)))


def with_half_a_model(trainer: Any) -> None:
    """While the third checkpoint is being written: its weights are there in half."""
    save, number = trainer.save_model, 0

    def cut(folder: str, *args: Any, **kwargs: Any) -> None:
        nonlocal number
        number += 1
        save(folder, *args, **kwargs)
        if number == 3:
            weights = Path(folder, "model.safetensors")
            os.truncate(weights, weights.stat().st_size // 2)
            kill()

    trainer.save_model = cut


def before_the_mark(trainer: Any) -> None:
    """While the third checkpoint is being written: all of it is there but the file that says so."""
    options = trainer._run_options
    trainer._run_options = partial(at_call, 4, options)  # the first call is that of `train`


POINTS: dict[str, Callable[[Any], None]] = {
    "generation": in_generation,
    "the optimiser's step": in_optimiser_step,
    "a checkpoint, half of the weights": with_half_a_model,
    "a checkpoint, before the optimiser": partial(in_checkpoint, before="_save_optimizer_and_scheduler"),
    "a checkpoint, before the random state": partial(in_checkpoint, before="_save_rng_state"),
    "a checkpoint, before the mark": before_the_mark,
}


def run(folder: str, point: str) -> None:
    trainer = make_trainer(folder, **OPTIONS)
    POINTS[point](trainer)
    trainer.train()

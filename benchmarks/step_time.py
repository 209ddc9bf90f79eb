"""Measure what a step of every method costs compared with the same step of GRPOTrainer.

    python benchmarks/step_time.py                                   # every method, on the embedded model
    python benchmarks/step_time.py --methods 'canon entropy' grpo    # some of them
    python benchmarks/step_time.py --model DIR --vllm                # any causal language model, sampled by vLLM
    python benchmarks/step_time.py --methods 'canon entropy' --natural    # responses end by themselves
    python benchmarks/step_time.py --baseline dr_grpo --methods entropy_shaped ter e3_temperature    # what stages add

Both trainers sample the same number of responses of the same fixed length and take the same optimiser steps. With
`--natural` they sample the same responses, which end by themselves; other models than the embedded one then get
questions instead of sums. Both take turns in one process, and the order alternates from pair to pair, so that a
machine that slows down slows both. A step is a rollout with all its updates, logging included. The gates act from the
second update on, so they and their baseline take two. The script reports the median and the quartiles of the ratios
per pair; before the first pair each side runs once, uncounted.
"""

import argparse
import gc
import itertools
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from canon_trl import CANONConfig, CANONTrainer
from canon_trl.advantages import ESTIMATORS
from canon_trl.controllers import STAGE as CONTROLLER
from canon_trl.loss_terms import STAGE as LOSS_TERM
from canon_trl.metrics import METRICS, RANDOM
from canon_trl.policy_losses import POLICY_LOSSES
from canon_trl.tasks import TASKS
from canon_trl.token_advantages import STAGE as TOKEN_ADVANTAGE

TASK = TASKS["arithmetic"]
BASELINE = "GRPOTrainer"
UPDATES = 2  # per rollout, for methods with a gate
FEWEST_PAIRS = 3  # even when the time is up

# Options that an estimator needs on the tasks, whose rewards are 0 and 1.
ESTIMATOR_OPTIONS: dict[str, dict[str, Any]] = {"pass_at_k": {"k": 2}, "pshw": {"low": 0}}

# For pretrained models with natural lengths.
QUESTIONS = (
    "What is {one} + {other}?",
    "What is the capital of {place}?",
    "Name a colour.",
    "Write a sentence about {place}.",
)
PLACES = (
    "France",
    "Italy",
    "Spain",
    "Germany",
    "Japan",
    "Egypt",
    "Canada",
    "Brazil",
    "India",
    "Norway",
    "Greece",
    "Peru",
)

# The fields of CANONConfig that define each method.
METHODS: dict[str, dict[str, Any]] = (
    {f"canon {metric}": {"canon_metric": metric} for metric in [*METRICS, RANDOM]}
    | {"canon entropy, forward": {"entropy_source": "forward"}}
    | {
        name: {"advantage_estimator": name, "advantage_estimator_kwargs": ESTIMATOR_OPTIONS.get(name, {})}
        for name in ESTIMATORS
        if name not in ("canon", "mix")
    }
    | {
        f"{name} {scope}": {
            "advantage_estimator": "dr_grpo",
            "policy_loss": name,
            "policy_loss_kwargs": {"scope": scope},
            "num_iterations": UPDATES,
        }
        for name, loss in POLICY_LOSSES.items()
        if "scope" in loss.all_options
        for scope in ("micro_batch", "batch")
    }
    | {"dynamic_sampling": {"advantage_estimator": "dr_grpo", "dynamic_sampling": True, "num_iterations": UPDATES}}
)

# Methods that act on top of an estimator; their baseline is that estimator alone.
ADDED: dict[str, dict[str, Any]] = {
    name: {"advantage_estimator": "dr_grpo", stage.field: name}
    for stage in (TOKEN_ADVANTAGE, LOSS_TERM, CONTROLLER)
    for name in stage.methods
}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a step processes.

    Attributes:
        model: folder of a causal language model with its tokenizer.
        responses: number of responses per rollout, all in one micro-batch.
        group: number of responses per prompt.
        tokens: number of tokens per response, or their maximum.
        natural: whether responses end by themselves.
        cpu, bf16, vllm: whether to run on the CPU, train in bfloat16, sample with vLLM.
    """

    model: str = str(TASK.model_path)
    responses: int = 64
    group: int = 16
    tokens: int = 40
    natural: bool = False
    cpu: bool = False
    bf16: bool = False
    vllm: bool = False


class StepTime(TrainerCallback):
    """Seconds of all steps, each from its beginning until it is logged."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = finished()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.seconds += finished() - self.start


def finished() -> float:
    """The time once all work on the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def every_other_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    """1 for every second response: every group has spread, and every estimator accepts these rewards."""
    return [float(place % 2) for place, _ in enumerate(completions)]


def prompts(workload: Workload) -> Dataset:
    if not workload.natural or workload.model == str(TASK.model_path):
        return TASK.dataset("train", 512)
    draw = random.Random(0)

    def question() -> str:
        return draw.choice(QUESTIONS).format(
            place=draw.choice(PLACES), one=draw.randint(2, 20), other=draw.randint(2, 20)
        )

    return Dataset.from_dict({"prompt": [[{"role": "user", "content": question()}] for _ in range(256)]})


def make(
    method: str, workload: Workload, *, updates: int = 1, reward: Callable[..., list[float]] = every_other_reward
) -> GRPOTrainer:
    """A trainer whose `train` takes one rollout; `updates` applies to GRPOTrainer only."""
    options = {} if method == BASELINE else (METHODS | ADDED)[method]
    updates = updates if method == BASELINE else options.get("num_iterations", 1)
    shared = {
        "per_device_train_batch_size": workload.responses,
        "num_generations": workload.group,
        "max_completion_length": workload.tokens,
        "loss_type": "dr_grpo",
        "learning_rate": 0.0,
        "bf16": workload.bf16,
        "use_cpu": workload.cpu,
        "gradient_checkpointing": False,
        "num_iterations": updates,
        "max_steps": updates,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    if workload.vllm:
        shared |= {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": workload.tokens + 64}
        shared |= {"vllm_gpu_memory_utilization": 0.3, "generation_kwargs": {"ignore_eos": True}}
    elif not workload.natural:
        shared |= {"generation_kwargs": {"min_new_tokens": workload.tokens}}
    folder = tempfile.mkdtemp()
    data = prompts(workload)
    if method == BASELINE:
        trainer = GRPOTrainer(workload.model, reward, GRPOConfig(folder, scale_rewards="none", **shared), data)
    else:
        trainer = CANONTrainer(workload.model, reward, CANONConfig(folder, **(shared | options)), data)
    trainer.remove_callback(PrinterCallback)
    return trainer


def step_seconds(trainer: GRPOTrainer, seeds: Iterator[int] | None = None) -> float:
    if seeds is not None:
        torch.manual_seed(next(seeds))
    timer = StepTime()
    trainer.add_callback(timer)
    trainer.train()
    trainer.remove_callback(timer)
    return timer.seconds


def paired(
    ours: Callable[[], float], theirs: Callable[[], float], pairs: int, until: float = math.inf
) -> list[tuple[float, float]]:
    """Measure both sides in turn; `ours` goes first in even pairs and `theirs` in odd ones.

    Args:
        ours, theirs: run one side once and return its seconds.
        pairs: the most pairs to measure.
        until: once `time.perf_counter()` has passed this, `FEWEST_PAIRS` are enough.
    """
    ours(), theirs()
    measured: list[tuple[float, float]] = []
    while len(measured) < pairs and (len(measured) < FEWEST_PAIRS or time.perf_counter() < until):
        if len(measured) % 2:
            second = theirs()
            measured.append((ours(), second))
        else:
            measured.append((ours(), theirs()))
    return measured


def ratio(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The median and the quartiles of first / second, over at least two pairs."""
    lower, median, upper = statistics.quantiles([a / b for a, b in pairs], n=4, method="inclusive")
    return {"median": median, "quartiles": [lower, upper], "pairs": len(pairs)}


def format_ratio(found: dict[str, Any]) -> str:
    lower, upper = found["quartiles"]
    return f"{found['median']:.3f} ({lower:.3f} to {upper:.3f}, {found['pairs']} pairs)"


def measure(
    methods: Sequence[str], workload: Workload, *, pairs: int, until: float = math.inf, baseline: str = BASELINE
) -> dict[str, dict[str, Any]]:
    """The ratio of every method to the baseline; the methods share the time until `until` equally."""
    baselines: dict[int, GRPOTrainer] = {}
    results = {}
    for place, method in enumerate(methods):
        now = time.perf_counter()
        updates = (METHODS | ADDED)[method].get("num_iterations", 1)
        if updates not in baselines:
            baselines[updates] = make(baseline, workload, updates=updates)
        ours, theirs = make(method, workload), baselines[updates]
        share = now + (until - now) / (len(methods) - place)
        sides = [partial(step_seconds, trainer, itertools.count()) for trainer in (ours, theirs)]
        seconds = paired(*sides, pairs, share)
        results[method] = ratio(seconds) | {"updates": updates, "seconds": seconds}
        print(f"{method:22} / {baseline}: {format_ratio(results[method])}", flush=True)
        del ours
        gc.collect()  # a trainer contains reference cycles that would keep its weights and moments alive
    return results


def main(argv: list[str] | None = None) -> None:
    default = Workload()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=default.model)
    parser.add_argument("--responses", type=int, default=default.responses)
    parser.add_argument("--group", type=int, default=default.group)
    parser.add_argument("--tokens", type=int, default=default.tokens)
    parser.add_argument("--natural", action="store_true")
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *ADDED], default=list(METHODS))
    parser.add_argument("--baseline", choices=[BASELINE, "dr_grpo"], default=BASELINE)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="more than one is noisy on a shared CPU")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args(argv)

    torch.set_num_threads(options.threads)
    workload = Workload(**{name: getattr(options, name) for name in [field.name for field in fields(Workload)]})
    results = measure(options.methods, workload, pairs=options.pairs, baseline=options.baseline)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(vars(options) | {"results": results}, file, indent=1)


if __name__ == "__main__":
    main()

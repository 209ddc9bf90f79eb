"""Measure where the time of a step goes, for GRPOTrainer and for our methods.

    python benchmarks/step_parts.py

The clock always counts towards exactly one part. It switches when one of the calls below begins and switches back when
the call ends, so every moment of a step counts once. The rest is TRL's: tokenising, decoding, padding, its own
advantages, gathers and logging.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

from step_time import BASELINE, METHODS, Workload, every_other_reward, finished, make
from transformers import TrainerCallback
from trl import GRPOTrainer

from canon_trl.hook.generation_recorder import GenerationRecorder

REST = "rest of TRL"
PARTS = (
    "generation",
    "scoring passes",
    "reward functions",
    "ours: metrics, gathers, advantages, gates",
    "loss, forward",
    "backward",
    "optimiser",
    REST,
)
GENERATION, SCORING, REWARDS, OURS, LOSS, BACKWARD, OPTIMISER, _ = PARTS
OUR_STEPS = ("_stage_inputs", "_tokens", "_terms")  # from the stages in the loss
OUR_METHODS = ("_make_rollout", "_estimate_advantages", *OUR_STEPS, "_mask_out", "_log_rollout")


class PartClock:
    """Seconds by part; time counts towards the innermost part under way."""

    def __init__(self, now: Callable[[], float] = finished) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._now = now
        self._under_way: list[str] = []
        self._since = 0.0

    def begin(self, part: str) -> None:
        self._count()
        self._under_way.append(part)

    def end(self) -> None:
        self._count()
        self._under_way.pop()

    def timed(self, function: Callable, part: str, *, within: Sequence[str] = ()) -> Callable:
        """Wrap a function so that its time counts as `part`, or as the part around it if that is in `within`."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            outer = self._under_way[-1] if self._under_way else None
            self.begin(outer if outer in within else part)
            try:
                return function(*args, **kwargs)
            finally:
                self.end()

        return call

    def _count(self) -> None:
        now = self._now()
        if self._under_way:
            self.seconds[self._under_way[-1]] += now - self._since
        self._since = now


class StepParts(TrainerCallback):
    def __init__(self, clock: PartClock) -> None:
        self._clock = clock

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._clock.begin(REST)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._clock.begin(OPTIMISER)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._clock.end()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self._clock.end()


def instrumented(method: str, workload: Workload, updates: int) -> tuple[GRPOTrainer, PartClock]:
    """A trainer, and the clock that times its parts."""
    clock = PartClock()
    trainer = make(method, workload, updates=updates, reward=clock.timed(every_other_reward, REWARDS))
    trainer.add_callback(StepParts(clock))
    model = trainer.model
    model.generate = clock.timed(model.generate, GENERATION)
    model.forward = clock.timed(model.forward, SCORING, within=(GENERATION, LOSS))
    trainer.compute_loss = clock.timed(trainer.compute_loss, LOSS)
    trainer.accelerator.backward = clock.timed(trainer.accelerator.backward, BACKWARD)
    if method != BASELINE:
        for name in OUR_METHODS:
            setattr(trainer, name, clock.timed(getattr(trainer, name), OURS))
    return trainer, clock


@contextmanager
def instrument_recorder(clock: PartClock) -> Iterator[None]:
    """Also time the hook that records entropies during generation."""
    timed = {name: clock.timed(getattr(GenerationRecorder, name), OURS) for name in ("_record", "records_of")}
    with patch.multiple(GenerationRecorder, **timed):
        yield


def measure(methods: Sequence[str], workload: Workload, *, steps: int) -> dict[str, dict[str, Any]]:
    """Seconds by part for every method and for baselines with the same number of updates, one step each in turn."""
    updates = {method: METHODS[method].get("num_iterations", 1) for method in methods}
    wanted: dict[str, tuple[str, int]] = {}  # every baseline before the methods with the same number of updates
    for count in sorted({*updates.values()}):
        wanted[f"{BASELINE}, {count} update{'s' * (count > 1)}"] = BASELINE, count
        wanted |= {method: (method, count) for method in methods if updates[method] == count}
    sides = {name: instrumented(method, workload, count) for name, (method, count) in wanted.items()}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(steps + 1):
        for name, (trainer, clock) in sides.items():
            clock.seconds.clear()
            with instrument_recorder(clock):
                trainer.train()
            taken[name].append({part: clock.seconds[part] for part in PARTS})
    results = {}
    for name, given in taken.items():
        middle = {part: statistics.median(step[part] for step in given[1:]) for part in PARTS}  # the first warms up
        results[name] = {"seconds": middle, "updates": wanted[name][1], "steps": given[1:]}
        whole = sum(middle.values())
        shares = ", ".join(f"{part} {seconds / whole:.1%}" for part, seconds in middle.items())
        print(f"{name:28} {1e3 * whole:7.0f} ms: {shares}", flush=True)
    return results


if __name__ == "__main__":
    measure(["canon entropy", "canon entropy, forward", "kl_cov micro_batch"], Workload(), steps=9)

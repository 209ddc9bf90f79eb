"""What a comparison can compare, and how to read it from the result of a run."""

import math
import re
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from canon_trl.options import did_you_mean

Result = dict[str, Any]


# What can be compared: how to read it from a run's result, and how to format it. Not every run has every number: a
# run without a right answer has no tokens per right answer.
METRICS: dict[str, tuple[Callable[[Result], float | None], str]] = {
    "accuracy": (lambda run: run["evaluation"]["avg"], ".3f"),
    "training accuracy": (lambda run: mean_of_batches(run), ".3f"),
    "mean accuracy on the way": (lambda run: mean_on_the_way(run["curve"]), ".3f"),
    "length (tokens)": (lambda run: run["evaluation"]["length"], ".1f"),
    "entropy (nats)": (lambda run: run["evaluation"]["entropy"], ".3f"),
    "tokens per right answer": (lambda run: run["evaluation"]["tokens_per_right_answer"], ".1f"),
    "seconds": (lambda run: seconds_of(run), ".0f"),
}
ACCURACIES = ("accuracy", "training accuracy", "mean accuracy on the way")  # and pass@k


def is_accuracy(name: str) -> bool:
    """Whether higher is better, between 0 and 1."""
    return name in ACCURACIES or name.startswith("pass@")


def metric(name: str, *, field: str = "metrics") -> tuple[Callable[[Result], float | None], str]:
    """Find a metric by its name; `pass@64` and the like come from the evaluation.

    Raises:
        ValueError: no metric has this name.
    """
    if re.fullmatch(r"pass@[1-9]\d*", name):
        return lambda run: run["evaluation"]["pass_at_k"][name.removeprefix("pass@")]["mean"], ".3f"
    if name not in METRICS:
        raise ValueError(
            f"{field} has {name!r}{did_you_mean(name, METRICS)}; choose from {[*METRICS, 'pass@k with a number k']}"
        )
    return METRICS[name]


def mean_of_batches(run: Result) -> float | None:
    """Return the mean accuracy of the batches that a run trained on, without the noise of `reward_flip`."""
    accuracies = run["training"]["accuracy"]
    return statistics.fmean(accuracies) if accuracies else None


def mean_on_the_way(curve: list[dict[str, float]]) -> float | None:
    """Return the mean height of the learning curve over the optimiser steps: how fast the model learns."""
    if len(curve) < 2:
        return None
    steps, accuracy = [point["step"] for point in curve], [point["accuracy"] for point in curve]
    return float(np.trapezoid(accuracy, steps) / (steps[-1] - steps[0]))


def seconds_of(run: Result) -> float | None:
    """Return the seconds for sampling values and for optimiser steps, of a run that evaluates as it trains."""
    if not run["curve"] or run["seconds_before"] is None:
        return None
    return float(run["curve"][-1]["seconds"] + run["seconds_before"])


def resolution(name: str, run: Result) -> float:
    """Return the smallest difference that a metric can show: one response of an evaluation, for an accuracy."""
    responses = run["evaluation"].get("num_prompts", 0) * run["evaluation"].get("num_samples", 0)
    return 1 / responses if name in ("accuracy", "pass@1") and responses else 0.0


def value_of(name: str, run: Result) -> float | None:
    """Return a metric of a run, or `None` if the run does not have it."""
    value = metric(name)[0](run)
    return None if value is None or math.isnan(value) else value

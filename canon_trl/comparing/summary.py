"""Means, spreads and paired differences of a comparison, ready for JSON."""

import math
import statistics
from dataclasses import asdict
from typing import Any

from canon_trl.comparing.metrics import Result, resolution, value_of
from canon_trl.evaluation.comparisons import paired_difference


def by_method(results: list[Result], task: str) -> dict[str, dict[int, Result]]:
    """Return the results of a task: method -> seed -> result."""
    found: dict[str, dict[int, Result]] = {}
    for result in results:
        if result["task"] == task:
            found.setdefault(result["method"], {})[result["seed"]] = result
    return found


def summarise(
    results: list[Result], metrics: list[str], baselines: dict[str, str], *, exploratory: bool = False
) -> dict[str, Any]:
    """Compute means, standard deviations and paired differences of all metrics, by task and method.

    The intervals of the differences hold jointly for a task's methods and metrics with a probability of 0.95, or each
    for itself if they are exploratory. A number that a run does not have is `None`. The mean is then over the
    other runs, and no difference is taken: a difference over the runs that did not collapse would flatter a method
    that does.
    """
    summary: dict[str, Any] = {}
    for task in dict.fromkeys(result["task"] for result in results):
        runs = by_method(results, task)
        counted = sum(baselines.get(method) in runs for method in runs) * len(metrics)
        comparisons = 1 if exploratory else max(1, counted)
        summary[task] = {"comparisons": comparisons, "exploratory": exploratory, "methods": {}}
        for method, seeds in runs.items():
            others = runs.get(baselines.get(method, ""), {})
            row: dict[str, Any] = {"seeds": sorted(seeds), "baseline": baselines.get(method)}
            paired = sorted(set(seeds) & set(others))
            for name in metrics:
                values = {seed: value_of(name, seeds[seed]) for seed in sorted(seeds)}
                present = [value for value in values.values() if value is not None]
                row[name] = {
                    "mean": statistics.fmean(present) if present else None,
                    "sd": statistics.stdev(present) if len(present) > 1 else None,
                    "values": [*values.values()],
                }
                own, other = [seeds[seed] for seed in paired], [others[seed] for seed in paired]
                if (difference := difference_of(name, own, other, comparisons)) is not None:
                    row[name]["difference"] = difference
            summary[task]["methods"][method] = row
    return summary


def difference_of(name: str, runs: list[Result], others: list[Result], comparisons: int) -> dict[str, Any] | None:
    """Return the paired difference of a metric; `None` without a pair, or if a run does not have the metric."""
    own, other = ([x for run in each if (x := value_of(name, run)) is not None] for each in (runs, others))
    if not own or len(own) < len(runs) or len(other) < len(others):
        return None
    steps = [resolution(name, run) for run in runs + others]
    difference = paired_difference(own, other, comparisons=comparisons, resolution=max(steps))
    return without_nan(asdict(difference)) | {"is_noise": difference.is_noise}


def without_nan(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}

"""The report of a comparison: `report.md`, `report.json` and pictures."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from canon_trl.evaluation import fit_entropy_law, paired_difference
from canon_trl.tasks import TASKS

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
    "seconds": (lambda run: run["curve"][-1]["seconds"] + run["seconds_before"] if run["curve"] else None, ".0f"),
}
ACCURACIES = ("accuracy", "training accuracy", "mean accuracy on the way")  # and pass@k


# What can be predicted of a difference, as the sign of its mean; 0: too small to see.
PREDICTIONS = {"higher": 1, "lower": -1, "none": 0}


def is_accuracy(name: str) -> bool:
    return name in ACCURACIES or name.startswith("pass@")


def metric(name: str) -> tuple[Callable[[Result], float | None], str]:
    """A metric by its name; `pass@64` and the like are read from the evaluation.

    Raises:
        ValueError: No metric has this name.
    """
    if name.startswith("pass@"):
        return lambda run: run["evaluation"]["pass_at_k"][name.removeprefix("pass@")]["mean"], ".3f"
    if name not in METRICS:
        raise ValueError(f"metrics has {name!r}; choose from {[*METRICS, 'pass@k with a number k']}")
    return METRICS[name]


def mean_of_batches(run: Result) -> float | None:
    """The mean accuracy of the batches that a run trained on, without the noise of `reward_flip`."""
    accuracies = run["training"]["accuracy"]
    return statistics.fmean(accuracies) if accuracies else None


def mean_on_the_way(curve: list[dict[str, float]]) -> float | None:
    """The mean height of the learning curve over the optimiser steps: how fast the model learns, in one number."""
    if len(curve) < 2:
        return None
    steps, accuracy = [point["step"] for point in curve], [point["accuracy"] for point in curve]
    return float(np.trapezoid(accuracy, steps) / (steps[-1] - steps[0]))


def by_method(results: list[Result], task: str) -> dict[str, dict[int, Result]]:
    """Results of a task: method -> seed -> result."""
    found: dict[str, dict[int, Result]] = {}
    for result in results:
        if result["task"] == task:
            found.setdefault(result["method"], {})[result["seed"]] = result
    return found


def summarise(
    results: list[Result], metrics: list[str], baselines: dict[str, str], *, exploratory: bool = False
) -> dict[str, Any]:
    """Means, standard deviations and paired differences of all metrics, by task and method, ready for JSON.

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
    """The paired difference of a metric for JSON; `None` without a pair, or if a run does not have the metric."""
    own, other = ([value_of(name, run) for run in each] for each in (runs, others))
    if not own or None in own + other:
        return None
    steps = [resolution(name, run) for run in runs + others]
    difference = paired_difference(own, other, comparisons=comparisons, resolution=max(steps))
    return without_nan(asdict(difference)) | {"is_noise": difference.is_noise}


def resolution(name: str, run: Result) -> float:
    """The smallest difference that a metric can show: one response of an evaluation, for an accuracy."""
    responses = run["evaluation"].get("num_prompts", 0) * run["evaluation"].get("num_samples", 0)
    return 1 / responses if name in ("accuracy", "pass@1") and responses else 0.0


def value_of(name: str, run: Result) -> float | None:
    """A metric of a run, or `None` if the run does not have it."""
    value = metric(name)[0](run)
    return None if value is None or math.isnan(value) else value


def without_nan(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}


def outcome(prediction: str, difference: dict[str, Any] | None) -> str:
    """Whether a difference agrees with its prediction."""
    if difference is None or difference["low"] is None:
        return "not enough runs"
    sign = PREDICTIONS[prediction]
    if difference["is_noise"]:
        return "not decided" if sign else "as predicted"
    return "as predicted" if difference["mean"] * sign > 0 else "against the prediction"


def add_outcomes(summary: dict[str, Any], predictions: dict[str, dict[str, dict[str, str]]]) -> None:
    """Add to the methods of a summary what was predicted of their metrics, and the outcome."""
    for task, methods in predictions.items():
        for method, predicted in methods.items():
            row = summary.get(task, {}).get("methods", {}).get(method, {})
            for name, prediction in predicted.items():
                if name in row:
                    found = outcome(prediction, row[name].get("difference"))
                    row[name] |= {"prediction": prediction, "outcome": found}


def predictions_table(summary: dict[str, Any], metrics: list[str]) -> str:
    """The predictions in Markdown, each next to its result; empty if there are none."""
    lines = []
    for task, found in summary.items():
        for method, row in found["methods"].items():
            for name in metrics:
                if "prediction" in row[name]:
                    shown = written(row[name].get("difference"), metric(name)[1])
                    cells = [task, f"{method} - {row['baseline']}", name, row[name]["prediction"], shown]
                    lines.append(f"| {' | '.join(cells)} | {row[name]['outcome']} |")
    if not lines:
        return ""
    return "\n".join(
        [
            "## Predictions and results",
            "",
            "| task | difference of | in | predicted | result | outcome |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            "The predictions were written before the runs; none: no difference that these seeds can show.",
            "",
        ]
    )


def table(summary: dict[str, Any], metrics: list[str]) -> str:
    """The summary in Markdown, one table per task; differences that may be noise are in brackets."""
    lines = []
    for task, found in summary.items():
        counts = [len(row["seeds"]) for row in found["methods"].values()]
        seeds = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
        lines += [f"## {task}, {seeds} seeds", ""]
        lines += [f"| method | minus | {' | '.join(f'{name} | difference' for name in metrics)} |"]
        lines += ["|---" * (2 + 2 * len(metrics)) + "|"]
        for method, row in found["methods"].items():
            cells = [method, row["baseline"] or ""]
            for name in metrics:
                _, form = metric(name)
                cells += [written_mean(row[name], form), written(row[name].get("difference"), form)]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [
            "",
            f"Mean ± standard deviation over seeds. Differences are paired by seed; {claim(found)} (Student"
            f"{'' if found.get('exploratory') else ', Bonferroni'}). Brackets mark intervals that contain 0, where "
            "the difference may be chance.",
            "",
        ]
        numbers = [row[name] for row in found["methods"].values() for name in metrics]
        if any(None in each["values"] for each in numbers):
            lines += [
                "Where some runs have no such number (none of their responses is right), the mean is over the other "
                "runs, with their count, and there is no difference.",
                "",
            ]
        if any("difference" in each and each["difference"]["low"] is None for each in numbers):
            lines += [
                "Differences without an interval come from one pair, or are the same in all pairs up to one response: "
                "their spread is unknown, so they may be chance.",
                "",
            ]
    return "\n".join(lines)


def claim(found: dict[str, Any]) -> str:
    """What the intervals of a task's table hold for."""
    if found.get("exploratory"):
        return "they are exploratory: each interval holds in 95% of such experiments, but not all of them jointly"
    return f"their intervals hold jointly for all {found['comparisons']} in this table in 95% of such experiments"


def written_mean(found: dict[str, Any], form: str) -> str:
    present = sum(value is not None for value in found["values"])
    if not present:
        return "none"
    spread = "" if found["sd"] is None else f" ± {found['sd']:{form}}"
    count = "" if present == len(found["values"]) else f" ({present} of {len(found['values'])} runs)"
    return f"{found['mean']:{form}}{spread}{count}"


def written(difference: dict[str, Any] | None, form: str) -> str:
    if difference is None:
        return ""
    text = f"{difference['mean']:+{form}}"
    if difference["low"] is not None:
        text += f" ({difference['low']:+{form}} to {difference['high']:+{form}})"
    return f"[{text}]" if difference["is_noise"] else f"**{text}**"


def write_report(
    folder: Path,
    results: list[Result],
    *,
    metrics: list[str],
    baselines: dict[str, str],
    command: str,
    predictions: dict[str, dict[str, dict[str, str]]] | None = None,
    exploratory: bool = False,
) -> None:
    """Write the report, its numbers and its pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(results, metrics, baselines, exploratory=exploratory)
    add_outcomes(summary, predictions or {})
    (folder / "report.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    versions = ", ".join(f"{package} {version(package)}" for package in ("canon-trl", "trl", "transformers", "torch"))
    text = [f"# Comparison of methods: {', '.join(summary)}", "", f"Made by `{command}` with {versions}.", ""]
    text += [f"{TASKS[task].description}\n" for task in summary if task in TASKS]
    pictures = {name: picture for name, picture in PICTURES.items() if name != TIMED or "seconds" in metrics}
    text += [predictions_table(summary, metrics), table(summary, metrics)]
    text += [*(f"![{what}]({name}.png)\n" for name, (_, what) in pictures.items())]
    (folder / "report.md").write_text("\n".join(text))
    for name, (draw, _) in pictures.items():
        figure = Figure(figsize=(7 * len(summary), 4), layout="constrained")
        for axes, task in zip(figure.subplots(1, len(summary), squeeze=False).flat, summary, strict=True):
            runs = by_method(results, task)
            axes.set_prop_cycle(color=colormaps["tab10" if len(runs) <= 10 else "tab20"].colors)
            draw(axes, runs)
            axes.set_title(task, fontsize=10)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(folder / f"{name}.png", dpi=120)


def draw_band(axes: Axes, x: Sequence[int], heights: np.ndarray, method: str, **line_options: Any) -> None:
    """Draw the mean over the seeds with a band of one standard deviation; `heights` has one row per seed."""
    mean, spread = heights.mean(axis=0), heights.std(axis=0, ddof=1) if len(heights) > 1 else 0
    (line,) = axes.plot(x, mean, label=f"{method} ({len(heights)})", **line_options)
    axes.fill_between(x, mean - spread, mean + spread, color=line.get_color(), alpha=0.12, linewidth=0)


def shared_points(seeds: dict[int, Result]) -> list[list[dict[str, float]]]:
    """The curves of a method's runs at the steps that all runs have, because a run may end early."""
    steps = set.intersection(*({point["step"] for point in run["curve"]} for run in seeds.values()))
    return [[point for point in run["curve"] if point["step"] in steps] for run in seeds.values()]


def draw_learning_curves(axes: Axes, runs: dict[str, dict[int, Result]]) -> None:
    for method, seeds in runs.items():
        points = shared_points(seeds)
        heights = np.array([[point["accuracy"] for point in curve] for curve in points])
        draw_band(axes, [point["step"] for point in points[0]], heights, method)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("held-out accuracy, mean ± sd over seeds")


def draw_time_curves(axes: Axes, runs: dict[str, dict[int, Result]]) -> None:
    for method, seeds in runs.items():
        points = shared_points(seeds)
        before = statistics.fmean(run["seconds_before"] for run in seeds.values())
        seconds = before + np.mean([[point["seconds"] for point in curve] for curve in points], axis=0)
        accuracy = np.mean([[point["accuracy"] for point in curve] for curve in points], axis=0)
        axes.plot(seconds, accuracy, marker="o", markersize=3, label=f"{method} ({len(seeds)})")
    axes.set_xlabel("seconds for sampling values and for optimiser steps")
    axes.set_ylabel("held-out accuracy, mean over seeds")


def draw_pareto_front(axes: Axes, runs: dict[str, dict[int, Result]]) -> None:
    means = []
    for method, seeds in runs.items():
        length, accuracy = (
            [METRICS[name][0](run) for run in seeds.values()] for name in ("length (tokens)", "accuracy")
        )
        means.append((np.mean(length), np.mean(accuracy)))
        (line,) = axes.plot(*means[-1], marker="o", linestyle="", label=method)
        axes.scatter(length, accuracy, s=8, color=line.get_color(), alpha=0.4)
    front = [point for point in sorted(means) if not any(dominates(other, point) for other in means)]
    axes.plot(
        *zip(*front, strict=True),
        color="gray",
        linewidth=0.8,
        zorder=0,
        label="front: no method is both\nshorter and better",
    )
    axes.set_xlabel("mean length of a response (tokens); small dots: seeds")
    axes.set_ylabel("accuracy")


def dominates(other: tuple[float, float], point: tuple[float, float]) -> bool:
    """Whether `other`, a pair of length and accuracy, is neither longer nor worse than `point`, and not equal."""
    return other != point and other[0] <= point[0] and other[1] >= point[1]


def draw_entropy_law(axes: Axes, runs: dict[str, dict[int, Result]]) -> None:
    for method, seeds in runs.items():
        points = [point for run in seeds.values() for point in run["curve"]]
        entropy, accuracy = ([point[name] for point in points] for name in ("entropy", "accuracy"))
        dots = axes.scatter(entropy, accuracy, s=8, alpha=0.4)
        if len(points) < 3 * len(seeds):  # an untrained model does not move along a curve
            continue
        try:
            law = fit_entropy_law(entropy, accuracy)
        except ValueError:  # collapsed from the beginning: any curve fits a single entropy
            dots.set_label(f"{method}: no fit")
            continue
        grid = np.linspace(min(entropy), max(entropy), 100)
        label = f"{method}: -{law.a:.2f} exp(H) + {law.b:.2f}, rms {law.residual:.3f}"
        axes.plot(grid, law.accuracy(grid), color=dots.get_facecolor()[0][:3], label=label)
    axes.set_xlabel("token entropy H (nats), along the runs of all seeds")
    axes.set_ylabel("held-out accuracy R")


def draw_pass_at_k(axes: Axes, runs: dict[str, dict[int, Result]]) -> None:
    for method, seeds in runs.items():
        ks = [int(k) for k in next(iter(seeds.values()))["evaluation"]["pass_at_k"]]
        heights = np.array([[run["evaluation"]["pass_at_k"][str(k)]["mean"] for k in ks] for run in seeds.values()])
        draw_band(axes, ks, heights, method, marker="o", markersize=3)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("k (responses)")
    axes.set_ylabel("pass@k, mean ± sd over seeds")


TIMED = "time_curves"  # drawn only where seconds are compared: on a busy machine they mean nothing
PICTURES: dict[str, tuple[Callable[[Axes, dict[str, dict[int, Result]]], None], str]] = {
    "learning_curves": (draw_learning_curves, "Held-out accuracy over optimiser steps"),
    "time_curves": (draw_time_curves, "Held-out accuracy over seconds"),
    "pareto_front": (draw_pareto_front, "Accuracy and length of the trained models"),
    "entropy_law": (draw_entropy_law, "Entropy and accuracy along the runs, with the fit R = -a exp(H) + b"),
    "pass_at_k": (draw_pass_at_k, "pass@k of the trained models"),
}

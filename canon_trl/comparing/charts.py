"""The pictures that are drawn from `report.json` alone: final accuracy with intervals, accuracy and length."""

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from canon_trl.comparing.panels import BASELINE, DPI, SMALL, WIDTH, looks

LENGTH = "length (tokens)"


def half_interval(values: list[float]) -> float | None:
    """Return half of the 95% interval of the mean (Student), or `None` without spread."""
    if len(values) < 2 or max(values) - min(values) < 1e-9:
        return None
    spread = math.sqrt(sum((value - sum(values) / len(values)) ** 2 for value in values) / (len(values) - 1))
    return float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))


def draw_final_accuracy(path: Path, summary: dict[str, Any]) -> None:
    """Draw one bar per method with the interval of the mean and one dot per seed, one panel per task."""
    tasks = {task: found["methods"] for task, found in summary.items() if has(found, "accuracy")}
    if not tasks:
        return
    rows = max(map(len, tasks.values()))
    columns = min(len(tasks), 2 if max(len(name) for rows_ in tasks.values() for name in rows_) > 14 else 3)
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(WIDTH, lines * (0.9 + 0.3 * rows)), layout="constrained", dpi=DPI)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, (task, methods) in zip(grid.flat, tasks.items(), strict=False):
        draw_bars(axes, methods)
        axes.set_title(task, fontsize=SMALL + 2)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    figure.supxlabel("accuracy on held-out prompts; bar: mean, line: 95% interval, dots: seeds", fontsize=SMALL + 1)
    figure.savefig(path)


def draw_bars(axes: Axes, methods: dict[str, Any]) -> None:
    references = {row["baseline"] for row in methods.values()}
    for place, (method, row) in enumerate(methods.items()):
        values = [value for value in row["accuracy"]["values"] if value is not None]
        colour = BASELINE.colour if method in references else "#2b62b5"
        axes.barh(place, row["accuracy"]["mean"], color=colour, alpha=0.75, height=0.65)
        if (half := half_interval(values)) is not None:
            mean = row["accuracy"]["mean"]
            within = [[min(half, mean)], [min(half, 1 - mean)]]  # an accuracy is between 0 and 1
            axes.errorbar(mean, place, xerr=within, color="black", capsize=3, linewidth=1.2)
        axes.plot(values, [place] * len(values), ".", color="black", markersize=3, alpha=0.5)
    axes.set_yticks(range(len(methods)), [*methods], fontsize=SMALL + 1)
    axes.invert_yaxis()
    axes.set_xlim(0, min(axes.get_xlim()[1], 1.02))
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def draw_pareto_front(path: Path, summary: dict[str, Any]) -> None:
    """Draw accuracy and length of the trained models, with the front of those that no other one dominates."""
    tasks = {task: found["methods"] for task, found in summary.items() if has(found, "accuracy", LENGTH)}
    if not tasks:
        return
    figure = Figure(figsize=(WIDTH, 4.2 * len(tasks)), layout="constrained", dpi=DPI)
    for axes, (task, methods) in zip(figure.subplots(len(tasks), 1, squeeze=False).flat, tasks.items(), strict=True):
        draw_front(axes, methods)
        axes.set_title(task, fontsize=SMALL + 2)
    figure.savefig(path)


def draw_front(axes: Axes, methods: dict[str, Any]) -> None:
    names = [name for name, row in methods.items() if None not in row["accuracy"]["values"] + row[LENGTH]["values"]]
    common = next((methods[name]["baseline"] for name in names if methods[name]["baseline"]), None)
    means = []
    for method, look in looks(names, common).items():
        row = methods[method]
        means.append((row[LENGTH]["mean"], row["accuracy"]["mean"]))
        axes.plot(*means[-1], marker=look.marker, color=look.colour, linestyle="", markersize=7, label=method)
        values = (row[LENGTH]["values"], row["accuracy"]["values"])
        axes.plot(*values, marker=look.marker, color=look.colour, linestyle="", markersize=3, alpha=0.35)
    front = [point for point in sorted(means) if not any(dominates(other, point) for other in means)]
    label = "front: no method is\nboth shorter and better"
    axes.plot(*zip(*front, strict=True), color="black", linewidth=0.8, zorder=0, label=label)
    axes.set_xlabel("mean length of a response (tokens); small markers: seeds", fontsize=SMALL + 1)
    axes.set_ylabel("accuracy", fontsize=SMALL + 1)
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=SMALL, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def dominates(other: tuple[float, float], point: tuple[float, float]) -> bool:
    """Return whether `other`, a pair of length and accuracy, is neither longer nor worse than `point`, nor equal."""
    return other != point and other[0] <= point[0] and other[1] >= point[1]


def has(found: dict[str, Any], *metrics: str) -> bool:
    return all(metric in row for row in found["methods"].values() for metric in metrics)


CHARTS = {
    "final_accuracy": (draw_final_accuracy, "Final accuracy of each method"),
    "pareto_front": (draw_pareto_front, "Accuracy and length of the trained models"),
}


def draw_charts(folder: Path, summary: dict[str, Any]) -> list[str]:
    """Draw the charts that the metrics suffice for, and return them in Markdown."""
    for name, (draw, _) in CHARTS.items():
        draw(folder / f"{name}.png", summary)
    return [f"![{about}]({name}.png)\n" for name, (_, about) in CHARTS.items() if (folder / f"{name}.png").exists()]

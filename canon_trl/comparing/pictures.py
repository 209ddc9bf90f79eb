"""The pictures that are drawn from the runs: curves over steps or seconds, entropy and accuracy, pass@k."""

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from canon_trl.comparing.metrics import Result
from canon_trl.comparing.panels import DrawMethod, Look, Seeds, draw_band, draw_panels
from canon_trl.comparing.summary import by_method
from canon_trl.evaluation.entropy_law import fit_entropy_law

WINDOW = 5  # steps whose mean is one point of a curve of training batches


def shared_points(seeds: Seeds) -> list[list[dict[str, float]]]:
    """Return the curves of a method's runs at the steps that all runs have, because a run may end early."""
    steps = set.intersection(*({point["step"] for point in run["curve"]} for run in seeds.values()))
    return [[point for point in run["curve"] if point["step"] in steps] for run in seeds.values()]


def draw_learning_curve(axes: Axes, seeds: Seeds, look: Look, label: str) -> None:
    points = shared_points(seeds)
    heights = np.array([[point["accuracy"] for point in curve] for curve in points])
    draw_band(axes, [int(point["step"]) for point in points[0]], heights, look, label)


def draw_time_curve(axes: Axes, seeds: Seeds, look: Look, label: str) -> None:
    points = shared_points(seeds)
    before = statistics.fmean(run["seconds_before"] or 0.0 for run in seeds.values())
    seconds = before + np.mean([[point["seconds"] for point in curve] for curve in points], axis=0)
    accuracy = np.mean([[point["accuracy"] for point in curve] for curve in points], axis=0)
    axes.plot(seconds, accuracy, label=label, **look.line)


def draw_training_curve(axes: Axes, seeds: Seeds, look: Look, label: str) -> None:
    """Draw the accuracy of the training batches, each point the mean of some rollouts."""
    curves = [run["training"]["accuracy"] for run in seeds.values()]
    points = min(map(len, curves)) // WINDOW
    if points:
        heights = np.array([curve[: points * WINDOW] for curve in curves]).reshape(len(curves), points, WINDOW)
        draw_band(axes, [*range(WINDOW, (points + 1) * WINDOW, WINDOW)], heights.mean(axis=2), look, label)


def draw_entropy_law(axes: Axes, seeds: Seeds, look: Look, label: str) -> None:
    """Draw entropy and accuracy along the runs, with the fit of the entropy law if there is one."""
    points = [point for run in seeds.values() for point in run["curve"]]
    entropy, accuracy = ([point[name] for point in points] for name in ("entropy", "accuracy"))
    axes.scatter(entropy, accuracy, s=6, alpha=0.4, color=look.colour, marker=look.marker)
    if len(points) < 3 * len(seeds):  # an untrained model does not move along a curve
        return
    try:
        law = fit_entropy_law(entropy, accuracy)
    except ValueError:  # collapsed from the beginning: any curve fits a single entropy
        return
    grid = np.linspace(min(entropy), max(entropy), 100)
    axes.plot(grid, law.accuracy(grid), color=look.colour, linewidth=1.2, label=f"fit, rms {law.residual:.3f}")


def draw_pass_at_k(axes: Axes, seeds: Seeds, look: Look, label: str) -> None:
    ks = [int(k) for k in next(iter(seeds.values()))["evaluation"]["pass_at_k"]]
    heights = np.array([[run["evaluation"]["pass_at_k"][str(k)]["mean"] for k in ks] for run in seeds.values()])
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    draw_band(axes, ks, heights, look, label)


@dataclass(frozen=True)
class Picture:
    """A picture of all methods of a task.

    Attributes:
        draw: draws one method.
        about: its title.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        needs: `curve` if runs must have evaluated while they trained, `seconds` if these must be compared too.
    """

    draw: DrawMethod
    about: str
    x: str
    y: str
    needs: str = ""


BAND = "mean ± sd over seeds"
STEPS = "optimiser step"
PICTURES = {
    "training_accuracy": Picture(
        draw_training_curve, "Accuracy of the training batches", "rollout", f"accuracy, {BAND}"
    ),
    "learning_curves": Picture(draw_learning_curve, "Held-out accuracy", STEPS, f"accuracy, {BAND}", "curve"),
    "time_curves": Picture(draw_time_curve, "Held-out accuracy", "seconds", "accuracy, mean over seeds", "seconds"),
    "entropy_law": Picture(
        draw_entropy_law,
        "Entropy H and accuracy R along the runs, with the fit R = -a exp(H) + b",
        "token entropy (nats)",
        "held-out accuracy",
        "curve",
    ),
    "pass_at_k": Picture(draw_pass_at_k, "pass@k of the trained models", "k (responses)", f"pass@k, {BAND}"),
}


def needed_pictures(results: list[Result], metrics: list[str]) -> dict[str, Picture]:
    """Return the pictures that the results suffice for; seconds mean nothing unless they are compared."""
    curves = all(run["curve"] for run in results)
    available = {"": True, "curve": curves, "seconds": curves and "seconds" in metrics}
    return {name: each for name, each in PICTURES.items() if available[each.needs]}


def draw_pictures(folder: Path, results: list[Result], baselines: dict[str, str], metrics: list[str]) -> list[str]:
    """Draw every picture for every task, and return them in Markdown."""
    shown = []
    for name, picture in needed_pictures(results, metrics).items():
        for task in dict.fromkeys(result["task"] for result in results):
            file, title = f"{name}_{task}.png", f"{task}: {picture.about}"
            runs = by_method(results, task)
            draw_panels(folder / file, runs, baselines, picture.draw, x=picture.x, y=picture.y, title=title)
            shown.append(f"![{title}]({file})\n")
    return shown

"""The report of a study: the named contrasts with their predictions, the tuning, and the rest as exploratory."""

import json
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compare_report import Result, by_method, difference_of, draw_band, metric, summarise, table, written
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from canon_trl.options import did_you_mean
from canon_trl.tasks import TASKS

if TYPE_CHECKING:
    from compare import Comparison

SIGNS = {"higher": 1, "lower": -1}


@dataclass(frozen=True)
class Contrast:
    """A difference between two methods on a task that a study was made for, named before its runs."""

    task: str
    method: str
    minus: str
    prediction: str

    @classmethod
    def of(cls, given: dict[str, str]) -> "Contrast":
        known = [each.name for each in fields(cls)]
        if not isinstance(given, dict) or sorted(given) != sorted(known):
            raise ValueError(f"contrasts has {given!r}; each needs exactly the keys {known}")
        return cls(**given)

    def check(self, pairs: list[tuple[str, str]]) -> None:
        """Reject a contrast of methods that the study does not run on the task; `pairs` are task and method."""
        tasks = [*dict.fromkeys(task for task, _ in pairs)]
        if self.task not in tasks:
            raise ValueError(f"contrasts: task={self.task!r}{did_you_mean(self.task, tasks)} must be one of {tasks}")
        methods = [method for task, method in pairs if task == self.task]
        for key in ("method", "minus"):
            if (name := getattr(self, key)) not in methods:
                raise ValueError(
                    f"contrasts: {key}={name!r}{did_you_mean(name, methods)} must be a method of task {self.task!r}, "
                    f"one of {methods}"
                )
        if self.prediction not in SIGNS:
            raise ValueError(f"contrasts: prediction={self.prediction!r} must be one of {[*SIGNS]}")

    def outcome(self, difference: dict[str, Any] | None) -> str:
        """Whether the difference agrees with the prediction."""
        if difference is None or difference["low"] is None:
            return "not enough runs"
        if difference["is_noise"]:
            return "not decided"
        agrees = difference["mean"] * SIGNS[self.prediction] > 0
        return "as predicted" if agrees else "against the prediction"


def write_study(folder: Path, comparison: "Comparison", results: list[Result], *, command: str) -> None:
    """Write `report.md`, `report.json` and the picture of a study, also of one that is not finished."""
    folder.mkdir(parents=True, exist_ok=True)
    assert comparison.primary is not None
    found = {
        "primary": comparison.primary,
        "finished": {
            "tuning": sum(run.result() is not None for run in comparison.tuning_runs()),
            "runs": len(results),
        },
        "planned": {"tuning": len(comparison.tuning_runs()), "runs": len(comparison.runs())},
        "contrasts": [contrasted(each, comparison, results) for each in comparison.contrasts],
        "tuning": {
            task: {name: tuned(comparison, task, name) for name in comparison.methods_of(task)}
            for task in comparison.tasks
            if comparison.learning_rates
        },
        "tasks": summarise(results, comparison.metrics, comparison.baselines(), exploratory=True),
    }
    (folder / "report.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    versions = ", ".join(f"{package} {version(package)}" for package in ("canon-trl", "trl", "transformers", "torch"))
    (folder / "report.md").write_text(
        f"# Study: {', '.join(comparison.tasks)}\n\nMade by `{command}` with {versions}.\n\n"
        + text(found, comparison.metrics)
    )
    draw(folder / "training_accuracy.png", results)


def contrasted(contrast: Contrast, comparison: "Comparison", results: list[Result]) -> dict[str, Any]:
    """A contrast with its difference; the interval is corrected for the number of contrasts."""
    runs = by_method(results, contrast.task)
    own, other = runs.get(contrast.method, {}), runs.get(contrast.minus, {})
    seeds = sorted(set(own) & set(other))
    difference = difference_of(
        str(comparison.primary),
        [own[seed] for seed in seeds],
        [other[seed] for seed in seeds],
        len(comparison.contrasts),
    )
    return asdict(contrast) | {"seeds": seeds, "difference": difference, "outcome": contrast.outcome(difference)}


def tuned(comparison: "Comparison", task: str, method: str) -> dict[str, Any]:
    """The mean of the primary metric by learning rate, and the learning rate chosen."""
    means: dict[str, float | None] = {}
    for rate, values in comparison.tuning(task, method).items():
        present = [value for value in values if value is not None]
        means[f"{rate:g}"] = sum(present) / len(present) if len(present) == len(values) else None
    best = comparison.best_rate(task, method)
    return {"means": means, "chosen": None if best is None else f"{best:g}"}


def text(found: dict[str, Any], metrics: list[str]) -> str:
    """The report without its heading."""
    form = metric(found["primary"])[1]
    lines = [
        f"Finished: {found['finished']['tuning']} of {found['planned']['tuning']} runs for tuning, "
        f"{found['finished']['runs']} of {found['planned']['runs']} runs of the study.",
        "",
        "## Contrasts named before the runs",
        "",
        f"Primary outcome: {found['primary']}, each method at its best learning rate.",
        "",
        "| task | contrast | predicted | difference | seeds | outcome |",
        "|---|---|---|---|---|---|",
    ]
    for each in found["contrasts"]:
        shown = written(each["difference"], form)
        cells = (each["task"], f"{each['method']} - {each['minus']}", each["prediction"], shown, len(each["seeds"]))
        lines.append(f"| {' | '.join(map(str, cells))} | {each['outcome']} |")
    lines += [
        "",
        f"Paired by seed; the intervals hold jointly for these {len(found['contrasts'])} contrasts in 95% of such "
        "experiments (Student, Bonferroni). In brackets: the interval contains 0.",
        "",
    ]
    if found["tuning"]:
        lines += ["## Learning rates", ""]
    for task, methods in found["tuning"].items():
        rates = [*next(iter(methods.values()))["means"]]
        lines += [f"| {task} | {' | '.join(rates)} |", "|---" * (1 + len(rates)) + "|"]
        for name, row in methods.items():
            cells = ["" if mean is None else f"{mean:{form}}" for mean in row["means"].values()]
            cells = [f"**{cell}**" if rate == row["chosen"] else cell for rate, cell in zip(rates, cells, strict=True)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    if found["tuning"]:
        lines += [
            f"Mean {found['primary']} over the tuning seeds, which the study does not use again; bold: chosen.",
            "",
        ]
    lines += [
        "## Everything else, exploratory",
        "",
        *(f"{TASKS[task].description}\n" for task in found["tasks"] if task in TASKS),
    ]
    lines += [table(found["tasks"], metrics), "![Accuracy of the training batches](training_accuracy.png)", ""]
    return "\n".join(lines)


def draw(path: Path, results: list[Result]) -> None:
    """Draw the accuracy of the training batches over the steps, one panel per task."""
    tasks = [*dict.fromkeys(result["task"] for result in results)]
    figure = Figure(figsize=(6 * len(tasks), 4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False).flat, tasks, strict=True):
        axes.set_prop_cycle(color=colormaps["tab10"].colors)
        draw_training(axes, by_method(results, task))
        axes.set_title(task, fontsize=10)
    figure.savefig(path, dpi=120)


def draw_training(axes: Axes, runs: dict[str, dict[int, Result]], *, window: int = 5) -> None:
    """Draw means over seeds, each point the mean of `window` steps."""
    import numpy as np

    for method, seeds in runs.items():
        curves = [run["training"]["accuracy"] for run in seeds.values()]
        points = min(map(len, curves)) // window
        heights = np.array([curve[: points * window] for curve in curves]).reshape(len(curves), points, window)
        draw_band(axes, [*range(window, (points + 1) * window, window)], heights.mean(axis=2), method)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("accuracy of the training batches, mean ± sd over seeds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)

"""The report of a comparison or a study: `report.md`, `report.json` and pictures."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from canon_trl.comparing.charts import draw_charts, draw_final_accuracy
from canon_trl.comparing.comparison import Comparison
from canon_trl.comparing.files import read_json
from canon_trl.comparing.metrics import Result
from canon_trl.comparing.panels import draw_panels
from canon_trl.comparing.pictures import PICTURES, draw_pictures
from canon_trl.comparing.predictions import add_outcomes
from canon_trl.comparing.study import study_text, summarise_study
from canon_trl.comparing.summary import by_method, summarise
from canon_trl.comparing.tables import predictions_table, table
from canon_trl.tasks import TASKS

PACKAGES = ("canon-trl", "trl", "transformers", "torch")


def report_folder(comparison: Comparison) -> Path:
    return comparison.report_dir or comparison.output_dir / "report"


def write(comparison: Comparison, results: list[Result], *, command: str) -> None:
    """Write the report of the results so far into its folder."""
    folder = report_folder(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    content: Callable[..., tuple[str, dict[str, Any], str]] = study if comparison.contrasts else plain
    title, found, text = content(folder, comparison, results)
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    (folder / "report.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    (folder / "report.md").write_text(f"# {title}\n\nMade by `{command}` with {versions}.\n\n{text}")


def plain(folder: Path, comparison: Comparison, results: list[Result]) -> tuple[str, dict[str, Any], str]:
    """Draw the pictures of a comparison, and return its title, its numbers and its text."""
    baselines, metrics = comparison.baselines(), comparison.metrics
    summary = plain_summary(comparison, results)
    pictures = [*draw_charts(folder, summary), *draw_pictures(folder, results, baselines, metrics)]
    text = plain_text(summary, metrics) + "\n" + "\n".join(pictures)
    return f"Comparison of methods: {', '.join(summary)}", summary, text


def plain_summary(comparison: Comparison, results: list[Result]) -> dict[str, Any]:
    """Return the content of the `report.json` of a comparison."""
    summary = summarise(results, comparison.metrics, comparison.baselines(), exploratory=comparison.exploratory)
    add_outcomes(summary, comparison.predictions)
    return summary


def redraw(comparison: Comparison) -> None:
    """Draw the charts of an existing report again, whose runs are not here."""
    folder = report_folder(comparison)
    if (found := read_json(folder / "report.json")) is not None and not comparison.contrasts:
        draw_charts(folder, found)


def plain_text(summary: dict[str, Any], metrics: list[str]) -> str:
    """Return the report of a comparison without its heading and its pictures."""
    about = [f"{TASKS[task].description}\n" for task in summary if task in TASKS]
    return "\n".join([*about, predictions_table(summary, metrics), table(summary, metrics)])


def study(folder: Path, comparison: Comparison, results: list[Result]) -> tuple[str, dict[str, Any], str]:
    """Draw the pictures of a study, and return its title, its numbers and its text."""
    found = summarise_study(comparison, results)
    draw_final_accuracy(folder / "final_accuracy.png", found["tasks"])
    curve = PICTURES["training_accuracy"]
    for task in found["tasks"]:
        title = f"{task}: {curve.about}"
        path, runs = folder / f"training_accuracy_{task}.png", by_method(results, task)
        draw_panels(path, runs, comparison.baselines(), curve.draw, x=curve.x, y=curve.y, title=title)
    return f"Study: {', '.join(comparison.tasks)}", found, study_text(found, comparison.metrics)

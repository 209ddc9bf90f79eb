"""The numbers of a study: the named contrasts with their predictions, the tuning, and the rest as exploratory."""

from typing import Any

from canon_trl.comparing.comparison import Comparison
from canon_trl.comparing.contrasts import evaluate_contrast
from canon_trl.comparing.metrics import Result, metric
from canon_trl.comparing.predictions import add_outcomes
from canon_trl.comparing.summary import summarise
from canon_trl.comparing.tables import predictions_table, table, written
from canon_trl.tasks import TASKS


def summarise_study(comparison: Comparison, results: list[Result]) -> dict[str, Any]:
    """Return the content of `report.json`, also of a study that is not finished."""
    contrasts, primary = comparison.contrasts, str(comparison.primary)
    tasks = summarise(results, comparison.metrics, comparison.baselines(), exploratory=True)
    add_outcomes(tasks, comparison.predictions)
    return {
        "primary": primary,
        "finished": {
            "tuning": sum(run.result() is not None for run in comparison.tuning_runs()),
            "runs": len(results),
        },
        "planned": {"tuning": len(comparison.tuning_runs()), "runs": len(comparison.runs())},
        "contrasts": [
            evaluate_contrast(each, results, metric=primary, contrasts=len(contrasts)) for each in contrasts
        ],
        "tuning": {
            task: {name: summarise_tuning(comparison, task, name) for name in comparison.methods_of(task)}
            for task in comparison.tasks
            if comparison.learning_rates
        },
        "tasks": tasks,
    }


def summarise_tuning(comparison: Comparison, task: str, method: str) -> dict[str, Any]:
    """Return the mean of the primary metric by learning rate, and the learning rate chosen."""
    means: dict[str, float | None] = {}
    for rate, values in comparison.tuning(task, method).items():
        present = [value for value in values if value is not None]
        means[f"{rate:g}"] = sum(present) / len(present) if len(present) == len(values) else None
    best = comparison.best_rate(task, method)
    return {"means": means, "chosen": None if best is None else f"{best:g}"}


def study_text(found: dict[str, Any], metrics: list[str]) -> str:
    """Return the report without its heading."""
    lines = [
        f"Finished: {found['finished']['tuning']} of {found['planned']['tuning']} runs for tuning, "
        f"{found['finished']['runs']} of {found['planned']['runs']} runs of the study.",
        "",
        *contrasts_table(found),
        "![Final accuracy of each method](final_accuracy.png)",
        "",
        *tuning_table(found),
        "## Everything else, exploratory",
        "",
        *(f"{TASKS[task].description}\n" for task in found["tasks"] if task in TASKS),
        predictions_table(found["tasks"], metrics),
        table(found["tasks"], metrics),
        *(f"![Accuracy of the training batches, {task}](training_accuracy_{task}.png)\n" for task in found["tasks"]),
    ]
    return "\n".join(lines)


def contrasts_table(found: dict[str, Any]) -> list[str]:
    form = metric(found["primary"])[1]
    lines = [
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
    return [
        *lines,
        "",
        f"Paired by seed; the intervals hold jointly for these {len(found['contrasts'])} contrasts in 95% of such "
        "experiments (Student, Bonferroni). In brackets: the interval contains 0.",
        "",
    ]


def tuning_table(found: dict[str, Any]) -> list[str]:
    if not found["tuning"]:
        return []
    form = metric(found["primary"])[1]
    lines = ["## Learning rates", ""]
    for task, methods in found["tuning"].items():
        rates = [*next(iter(methods.values()))["means"]]
        lines += [f"| {task} | {' | '.join(rates)} |", "|---" * (1 + len(rates)) + "|"]
        for name, row in methods.items():
            cells = ["" if mean is None else f"{mean:{form}}" for mean in row["means"].values()]
            cells = [f"**{cell}**" if rate == row["chosen"] else cell for rate, cell in zip(rates, cells, strict=True)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines.append(f"Mean {found['primary']} over the tuning seeds, which the study does not use again; bold: chosen.")
    return [*lines, ""]

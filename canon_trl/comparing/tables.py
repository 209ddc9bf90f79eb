"""A comparison's numbers in Markdown."""

from typing import Any

from canon_trl.comparing.metrics import metric


def predictions_table(summary: dict[str, Any], metrics: list[str]) -> str:
    """Return the predictions in Markdown, each next to its result; an empty text if there are none."""
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
            "The predictions were written before the runs. None: no difference that these seeds can show; where the "
            'interval is wide, "none seen" says little.',
            "",
        ]
    )


def table(summary: dict[str, Any], metrics: list[str]) -> str:
    """Return the summary in Markdown, one table per task; differences that may be noise are in brackets."""
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
    """Say what the intervals of a task's table hold for."""
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

"""Probe the embedded tasks, compare what the probe says with the published runs, and write both to docs/probe.md.

    python benchmarks/probe.py             # probes the tasks, a minute on two cores, and writes the page
    python benchmarks/probe.py --tables    # writes the page from benchmarks/results/probe/

The published numbers are read from docs/comparisons/.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from marked_parts import filled_in
from scipy.stats import spearmanr

from canon_trl.cli.probe import main as probe

ROOT = Path(__file__).parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "probe.md", ROOT / "benchmarks" / "results" / "probe"
PICTURE = ROOT / "docs" / "images" / "probe.png"
CASES = {name: ["--task", name] for name in ("arithmetic", "verbosity", "countdown", "hint")}
CASES["noise"] = [*CASES["arithmetic"], "--reward_flip", "0.35"]
EXAMPLE = "hint"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def result(task: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{task}.json").read_text())
    return found


def published(task: str, column: str) -> dict[str, float]:
    """Return the means of a column of a comparison's first table, by the label that the probe has for the method."""
    lines = (ROOT / "docs" / "comparisons" / task / "report.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")]
    place = rows[0].index(column)
    return {label_of(row[0]): float(row[place].split()[0]) for row in rows[1:] if row[0] not in ("method", "---")}


def label_of(method: str) -> str:
    method = method.removesuffix(" split")
    return f"canon {method}" if method.startswith(("inter", "intra", "eff")) else method


def verdicts() -> str:
    def of_case(case: str) -> list[str]:
        found = result(case)
        kinds = {each["about"]: each["kind"] for each in found["verdict"] if each["about"].startswith("metric")}
        without = [each["says"] for each in found["verdict"] if each["kind"] == "no signal"]
        names = without[0].partition(": ")[2].rstrip(".") if without else "none"
        gains = [
            "{mean:.2f} ({low:.2f} to {high:.2f})".format(**found["estimators"][f"canon {kind}, surprisal"]["gain"])
            for kind in ("inter", "intra")
        ]
        judged = [kinds[f"metric {name}"] for name in ("entropy", "length", "surprisal")]
        return [f"`{' '.join(CASES[case])}`", *judged, *gains, names]

    head = ["probe", "entropy", "length", "surprisal", "gain of Inter, surprisal", "gain of Intra, surprisal"]
    return table([*head, "estimators without a signal"], map(of_case, CASES))


def lengths(task: str) -> str:
    found, after = result(task)["estimators"], published(task, "length (tokens)")
    both = sorted((label for label in after if label in found), key=lambda label: after[label])
    predicted = {label: found[label]["length"] for label in both}
    rows = [
        [label, "{mean:+.3f} ({low:+.3f} to {high:+.3f})".format(**predicted[label]), f"{after[label]:.1f}"]
        for label in both
    ]
    rank = spearmanr([predicted[label]["mean"] for label in both], [after[label] for label in both]).statistic
    before = result(task)["prompts"]["length"]
    sure = [label for label in both if predicted[label]["low"] * predicted[label]["high"] > 0]
    right = [label for label in sure if (after[label] - before) * predicted[label]["mean"] > 0]
    head = ["method", "predicted change", "length after training"]
    return (
        f"{table(head, rows)}\n\n`{task}`: {before:.1f} tokens before training. The intervals of {len(sure)} of "
        f"{len(both)} methods exclude 0, and {len(right)} of these end on that side of the base model. The rank "
        f"correlation of all is {rank:.2f}."
    )


def signals() -> str:
    found, after = result("countdown")["estimators"], published("countdown", "accuracy")
    both = sorted((label for label in after if label in found), key=lambda label: -after[label])
    rows = [
        [label, "{mean:.3f} ({low:.3f} to {high:.3f})".format(**found[label]["signal"]), f"{after[label]:.3f}"]
        for label in both
    ]
    return table(["method", "signal before training", "accuracy after training"], rows)


def studied() -> list[dict[str, Any]]:
    """Return what the probe predicts of every method of the study that it knows, and what the study found.

    A gain predicts if its interval excludes 1, a change of length if its interval excludes 0.
    """
    study = json.loads((ROOT / "docs" / "comparisons" / "study" / "report.json").read_text())["tasks"]
    rows = []
    for task, report in study.items():
        probed = result(task)
        for method, found in report["methods"].items():
            label, difference = label_of(method), found.get("training accuracy", {}).get("difference")
            if label not in probed["estimators"] or difference is None:
                continue
            predicted = probed["estimators"][label]
            before, after = probed["prompts"]["length"], found["length (tokens)"]
            rows.append(
                {
                    "task": task,
                    "method": label,
                    "gain": predicted["gain"],
                    "gain predicts": direction(predicted["gain"], 1),
                    "difference": difference,
                    "found": 0 if difference["is_noise"] else direction(difference, 0),
                    "length": predicted["length"],
                    "length predicts": direction(predicted["length"], 0),
                    "before": before,
                    "after": after["mean"],
                    "lengthened": 1 if after["mean"] > before else -1,
                }
            )
    return rows


def direction(interval: dict[str, float], neutral: float) -> int:
    """Return 1 if an interval is above a number, -1 if it is below, and 0 if it contains it."""
    return (interval["low"] > neutral) - (interval["high"] < neutral)


def study() -> str:
    def interval(given: dict[str, float], form: str = "+.3f") -> str:
        return f"{given['mean']:{form}} ({given['low']:{form}} to {given['high']:{form}})"

    def held(predicted: int, found: int) -> str:
        if not predicted:
            return "no prediction"
        return "undecided" if not found else "yes" if predicted == found else "**no**"

    rows = studied()
    table_of_gains = table(
        ["task", "method", "gain", "accuracy, minus Dr.GRPO's", "held", "length change", "length", "held"],
        [
            [
                row["task"],
                row["method"],
                interval(row["gain"], ".2f"),
                interval(row["difference"]),
                held(row["gain predicts"], row["found"]),
                interval(row["length"], "+.2f"),
                f"{row['before']:.1f} to {row['after']:.1f}",
                held(row["length predicts"], row["lengthened"]),
            ]
            for row in rows
        ],
    )

    def counted(predicts: str, found: str) -> str:
        outcomes = [held(row[predicts], row[found]) for row in rows]
        made = len(outcomes) - outcomes.count("no prediction")
        wrong, open_ = outcomes.count("**no**"), outcomes.count("undecided")
        return f"{outcomes.count('yes')} of {made} held, {wrong} failed" + (f", {open_} undecided" if open_ else "")

    return (
        f"{table_of_gains}\n\nGains: {counted('gain predicts', 'found')}. Direction of length: "
        f"{counted('length predicts', 'lengthened')}."
    )


def example() -> str:
    return "\n".join(f"- {each['says']}" for each in result(EXAMPLE)["verdict"])


SECTIONS: dict[str, Callable[[], str]] = {
    "example": example,
    "verdicts": verdicts,
    "lengths on verbosity": lambda: lengths("verbosity"),
    "lengths on arithmetic": lambda: lengths("arithmetic"),
    "signals on countdown": signals,
    "study": study,
}


def write_page() -> None:
    DOCUMENT.write_text(filled_in(DOCUMENT.read_text(), {name: write() for name, write in SECTIONS.items()}))
    print(f"{DOCUMENT} written")


def run_probes() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    for case, flags in CASES.items():
        with TemporaryDirectory() as folder:
            probe([*flags, "--probe_dir", folder])
            found = json.loads((Path(folder) / "probe.json").read_text())
            found["settings"]["model"] = Path(found["settings"]["model"]).name  # not the path on this machine
            (RESULTS / f"{case}.json").write_text(json.dumps(found, indent=1) + "\n")
            if case == EXAMPLE:
                shutil.copyfile(Path(folder) / "probe.png", PICTURE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="write the page only, from the stored results")
    if not parser.parse_args().tables:
        run_probes()
    write_page()

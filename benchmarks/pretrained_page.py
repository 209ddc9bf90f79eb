"""The page docs/pretrained.md and its picture, from the results of `pretrained.py` and of the comparison."""

import json
from pathlib import Path
from typing import Any

from marked_parts import filled_in
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "pretrained.md", ROOT / "docs" / "images" / "pretrained.png"
COMPARED = ROOT / "benchmarks" / "results" / "smollm2_sums" / "runs" / "sums"
METHODS = {"inter_entropy": "CANON-Inter, entropy", "dr_grpo": "Dr.GRPO", "astar_po": "A\\*-PO"}
MARKERS = {"inter_entropy": "o", "dr_grpo": "s", "astar_po": "^"}


def runs(method: str) -> dict[int, dict[str, Any]]:
    """Return the finished runs of a method by seed."""
    return {int(path.stem): json.loads(path.read_text()) for path in sorted((COMPARED / method).glob("*.json"))}


def methods(greedy_before: float) -> str:
    """Return the table of three methods on `sums`: one number per seed."""
    lines = ["| method | sampled, before | sampled, after | greedy, before | greedy, after |", "|---" * 5 + "|"]
    for method, label in METHODS.items():
        found = runs(method)
        if not found:
            continue
        cells = [
            seeds([run["curve"][0]["accuracy"] for run in found.values()]),
            seeds([run["curve"][-1]["accuracy"] for run in found.values()]),
            f"{greedy_before:.3f}",
            seeds([run["evaluation"]["avg"] for run in found.values()]),
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seeds(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def single(found: dict[str, Any]) -> str:
    """Return the table of a single run: its curve, and the greedy accuracy before and after."""
    points = found["curve"]
    lines = ["| step | minutes of training | accuracy at temperature 1 |", "|---|---|---|"]
    lines += [f"| {each['step']} | {each['seconds'] / 60:.1f} | {each['accuracy']:.3f} |" for each in points]
    before, after = (
        "{mean:.3f} ({low:.3f} to {high:.3f})".format(**found["greedy"][when]) for when in ("before", "after")
    )
    prompts = found["greedy"]["after"]["prompts"]
    lines += [
        "",
        f"Greedy accuracy on the {prompts} held-out prompts, with the interval over prompts: {before} before, {after} "
        f"after. Seed {found['seed']}, {found['seconds'] / 60:.0f} minutes in all, including evaluations.",
    ]
    return "\n".join(lines)


def draw(large: dict[str, Any] | None) -> None:
    """Draw the learning curves: three methods on `sums`, and the hour on `large_sums`."""
    columns = 1 if large is None else 2
    figure = Figure(figsize=(4.5 * columns, 3.4), layout="constrained")
    left, *others = figure.subplots(1, columns, squeeze=False)[0]
    for method, label in METHODS.items():
        for number, run in enumerate(runs(method).values()):
            steps = [point["step"] for point in run["curve"]]
            heights = [point["accuracy"] for point in run["curve"]]
            name = label.replace("\\", "") if number == 0 else None
            color = f"C{list(METHODS).index(method)}"
            left.plot(steps, heights, marker=MARKERS[method], color=color, label=name, linewidth=1.2)
    left.set_title("sums up to 40, a line per seed", fontsize=10)
    if large is not None:
        others[0].plot([p["step"] for p in large["curve"]], [p["accuracy"] for p in large["curve"]], "o-", color="C0")
        others[0].set_title("sums up to 100, CANON-Inter, one seed", fontsize=10)
    for axes in (left, *others):
        axes.set(ylim=(0, 1), xlabel="optimiser step", ylabel="held-out accuracy")
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def write_page(results: Path) -> None:
    """Replace the generated parts of the page."""
    found = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    before = found.pop("base")["greedy"]["before"]["mean"]
    parts = {"methods": methods(before)} | {name: single(each) for name, each in found.items()}
    PAGE.write_text(filled_in(PAGE.read_text(), parts))
    draw(found.get("large"))
    print(f"{PAGE} and {PICTURE} written")

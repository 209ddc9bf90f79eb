"""Draw docs/images/architecture.svg from the list of imports in docs/architecture.md.

python docs/architecture_picture.py
"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch

DOCS = Path(__file__).parent
PICTURE = DOCS / "images" / "architecture.svg"

# Where a part stands, in columns and rows, and what is in it.
PARTS = {
    "canon_trl": (3.0, 4.4, "the public names"),
    "trainers": (2.0, 4.0, "CANON, A*-PO"),
    "hook": (2.0, 3.1, "all that knows\nTRL's trainer"),
    "publishing": (0.0, 3.6, "card, citations,\nuploads"),
    "config": (1.0, 2.2, "options, and what\nthey refuse"),
    "evaluation": (4.2, 3.2, "pass@k, intervals,\nwhile training"),
    "sampling": (3.85, 2.1, "dynamic sampling,\nresponses, V*"),
    "advantages": (2.0, 1.05, "rewards (P, G)\nto advantages"),
    "policy_losses": (-0.2, 1.05, "what a token weighs\nin the loss"),
    "policy_rewards": (5.4, 1.05, "rewards from\nthe policy itself"),
    "token_advantages": (5.4, 2.0, "what a token's\nadvantage becomes"),
    "loss_terms": (5.4, 2.95, "what is added\nto the loss"),
    "controllers": (5.4, 3.9, "what moves a setting\nbetween steps"),
    "tokens": (6.4, 1.9, "what a method sees\nof a micro-batch"),
    "method": (5.35, 0.0, "what a function\nreads and takes"),
    "paper": (6.4, 0.6, "a citation"),
    "metrics": (0.95, 1.05, "a number\na response"),
    "schedules": (0.0, 2.1, "mu over a run"),
    "guards": (4.2, 1.0, "checks and\na time limit"),
    "selection": (-0.2, 0.0, "tokens chosen\nover all ranks"),
    "rollout": (3.0, 0.0, "what an estimator sees"),
    "rounding": (4.2, 0.0, "what sums are off by"),
    "imports": (0.95, 0.0, "functions by import path"),
    "tasks": (4.2, 4.4, "embedded tasks\nwith their models"),
}
USES_TRL, USES_TRANSFORMERS, TORCH_ONLY = "#f3c9a5", "#f5e6b8", "#cfe0f3"
ON_TRL = ("canon_trl", "config", "guards", "hook", "publishing", "trainers", "evaluation", "sampling")
COLOURS = dict.fromkeys(ON_TRL, USES_TRL) | {"tasks": USES_TRANSFORMERS}
LEGEND = {
    USES_TRL: "stands on TRL",
    USES_TRANSFORMERS: "transformers and datasets, not TRL",
    TORCH_ONLY: "torch at most",
}


def edges() -> list[tuple[str, str]]:
    (block,) = re.findall(r"```text\n((?:\w+ +-> .*\n)+)```", (DOCS / "architecture.md").read_text())
    pairs = [line.split("->") for line in block.splitlines()]
    return [(importer.strip(), part.strip()) for importer, named in pairs for part in named.split(",")]


def draw() -> plt.Figure:
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "architecture", "font.family": "sans-serif"}
    figure, axes = plt.subplots(figsize=(14, 6.2), layout="constrained")
    boxes = {}
    for part, (column, row, about) in PARTS.items():
        x, y = 2.4 * column, 1.5 * row
        box = {"boxstyle": "round,pad=0.45", "facecolor": COLOURS.get(part, TORCH_ONLY), "edgecolor": "#444444"}
        label = axes.text(x, y, f"{part}\n{about}", ha="center", va="center", fontsize=9, bbox=box, zorder=2)
        boxes[part] = label.get_bbox_patch()
    for importer, part in edges():
        ends = [(2.4 * PARTS[name][0], 1.5 * PARTS[name][1]) for name in (importer, part)]
        style = {"arrowstyle": "-|>", "mutation_scale": 12, "color": "#555555", "zorder": 1}
        arrow = FancyArrowPatch(*ends, patchA=boxes[importer], patchB=boxes[part], **style)
        arrow.set_gid(f"{importer}->{part}")
        axes.add_patch(arrow)
    for colour, meaning in LEGEND.items():
        axes.scatter([], [], marker="s", s=90, color=colour, edgecolor="#444444", label=meaning)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0.18, 1.0),
        frameon=False,
        fontsize=9,
        title="an arrow means: imports",
        alignment="left",
    )
    axes.set(xlim=(-1.4, 16.4), ylim=(-0.8, 7.4))
    axes.axis("off")
    return figure


if __name__ == "__main__":
    figure = draw()
    figure.savefig(PICTURE, metadata={"Date": None})

"""Draw docs/images/architecture.svg from the list of imports in docs/architecture.md.

python docs/architecture_picture.py
"""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch

DOCS = Path(__file__).parent
PICTURE = DOCS / "images" / "architecture.svg"

# The folders of the stages, in the order in which data passes through them.
STAGES = ("policy_rewards", "advantages", "token_advantages", "policy_losses", "loss_terms", "controllers")

# The column and row of each part, and what it contains.
PARTS = {
    "canon_trl": (2.5, 4.6, "the public names"),
    "trainers": (2.5, 3.9, "CANON, A*-PO"),
    "publishing": (0.6, 3.5, "card, citations,\nuploads"),
    "__main__": (1.5, 4.7, "canon-trl"),
    "cli": (1.5, 3.95, "train, values,\nevaluate, ..."),
    "recipes": (4.0, 4.6, "YAML options\non a base"),
    "tasks": (5.2, 4.6, "embedded tasks\nwith their models"),
    "comparing": (3.85, 3.75, "methods x tasks\nx seeds"),
    "evaluation": (5.2, 3.7, "pass@k, intervals,\nduring training"),
    "config": (0.6, 2.6, "options and\ntheir checks"),
    "hook": (2.5, 3.0, "calls every stage; the only part\nthat touches TRL's internals"),
    "sampling": (4.2, 2.8, "dynamic sampling,\nresponses, V*"),
    "guards": (5.4, 2.7, "checks and\na time limit"),
    "policy_rewards": (0.0, 1.5, "rewards from\nthe policy itself"),
    "advantages": (1.1, 1.5, "rewards (P, G)\nto advantages"),
    "token_advantages": (2.2, 1.5, "changes advantages\ntoken by token"),
    "policy_losses": (3.3, 1.5, "TRL's loss changed,\nor another one"),
    "loss_terms": (4.4, 1.5, "terms added\nto the loss"),
    "controllers": (5.5, 1.5, "change a setting\nbetween steps"),
    "schedules": (-0.1, 0.6, "mu over a run"),
    "metrics": (0.8, 0.6, "a number\nper response"),
    "rollout": (1.75, 0.6, "what an estimator sees"),
    "tokens": (2.85, 0.6, "what a loss stage sees"),
    "selection": (4.1, 0.6, "chooses tokens\nacross ranks"),
    "trl_release": (-0.1, -0.2, "supported TRL\nreleases"),
    "rounding": (1.0, -0.2, "rounding error of sums"),
    "imports": (2.2, -0.2, "functions by import path"),
    "method": (3.4, -0.2, "what a method\nreads"),
    "options": (4.5, -0.2, "options and\ntheir bounds"),
    "paper": (5.5, -0.2, "a citation"),
}
USES_TRL, USES_TRANSFORMERS, TORCH_ONLY = "#f3c9a5", "#f5e6b8", "#cfe0f3"
ON_TRL = (
    "canon_trl",
    "cli",
    "comparing",
    "config",
    "guards",
    "hook",
    "publishing",
    "trainers",
    "trl_release",
    "evaluation",
    "sampling",
)
COLOURS = dict.fromkeys(ON_TRL, USES_TRL) | {"tasks": USES_TRANSFORMERS}
LEGEND = {
    USES_TRL: "uses TRL",
    USES_TRANSFORMERS: "transformers and datasets, not TRL",
    TORCH_ONLY: "torch at most",
}


def edges() -> list[tuple[str, str]]:
    (block,) = re.findall(r"```text\n((?:\w+ +-> .*\n)+)```", (DOCS / "architecture.md").read_text())
    pairs = [line.split("->") for line in block.splitlines()]
    return [(importer.strip(), part.strip()) for importer, named in pairs for part in named.split(",")]


def draw() -> plt.Figure:
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "architecture", "font.family": "sans-serif"}
    figure, axes = plt.subplots(figsize=(14, 8), layout="constrained")
    axes.set(xlim=(-1.5, 14.5), ylim=(-0.9, 8.2))
    axes.axis("off")
    boxes = {}
    for part, (column, row, about) in PARTS.items():
        width = 2.0 if part in STAGES else 1.0
        box = {"boxstyle": "round,pad=0.45", "facecolor": COLOURS.get(part, TORCH_ONLY), "edgecolor": "#444444"}
        label = axes.text(
            *place(column, row), f"{part}\n{about}", ha="center", va="center", fontsize=9, bbox=box, zorder=3
        )
        boxes[part] = label.get_bbox_patch()
        boxes[part].set_linewidth(width)
    figure.draw_without_rendering()  # sets the sizes of the boxes, where the arrows end
    for importer, part in edges():
        called = importer == "hook" and part in STAGES
        arrow = arrow_between(
            boxes, importer, part, color="#333333" if called else "#bbbbbb", zorder=2 if called else 1
        )
        arrow.set_gid(f"{importer}->{part}")
        axes.add_patch(arrow)
    for before, after in pairwise(STAGES):  # data flow, not imports
        axes.add_patch(arrow_between(boxes, before, after, color="#2b62b5", linewidth=3, zorder=2, mutation_scale=18))
    for colour, meaning in LEGEND.items():
        axes.scatter([], [], marker="s", s=90, color=colour, edgecolor="#444444", label=meaning)
    axes.plot([], [], color="#bbbbbb", label="imports")
    axes.plot([], [], color="#333333", label="imports, and calls its methods")
    axes.plot([], [], color="#2b62b5", linewidth=3, label="data: from the rewards to the loss")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    return figure


def place(column: float, row: float) -> tuple[float, float]:
    return 2.4 * column, 1.65 * row


def arrow_between(boxes: dict, start: str, end: str, **style: Any) -> FancyArrowPatch:
    ends = [place(*PARTS[name][:2]) for name in (start, end)]
    style = {"arrowstyle": "-|>", "mutation_scale": 12} | style
    return FancyArrowPatch(*ends, patchA=boxes[start], patchB=boxes[end], **style)


if __name__ == "__main__":
    figure = draw()
    figure.savefig(PICTURE, metadata={"Date": None})

"""Small multiples: one panel per method, which stands out in colour against its grey baseline."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from canon_trl.comparing.metrics import Result

WIDTH, DPI = 8.0, 160  # inches: text of 8 points is legible when a page shows the picture at 800 pixels
COLUMNS = 4
SMALL = 8
MARKERS = "osD^vP*X<>h"

Seeds = dict[int, Result]


@dataclass(frozen=True)
class Look:
    """How a method is drawn: baselines grey with open squares, others in colour with a marker of their own."""

    colour: Any
    marker: str
    baseline: bool = False

    @property
    def line(self) -> dict[str, Any]:
        style = {"color": self.colour, "marker": self.marker, "markersize": 3.5, "linewidth": 1.4}
        return style | ({"linestyle": "--", "markerfacecolor": "white"} if self.baseline else {})


BASELINE = Look("#777777", "s", baseline=True)
DrawMethod = Callable[[Axes, Seeds, Look, str], None]  # axes, runs by seed, look, label


def looks(methods: list[str], baseline: str | None) -> dict[str, Look]:
    """Give each method a colour and a marker; the baseline is grey."""
    found, markers = {}, cycle(MARKERS)
    colours = cycle(f"C{place}" for place in range(10) if place != 7)  # 7 is grey
    for method in methods:
        found[method] = BASELINE if method == baseline else Look(next(colours), next(markers))
    return found


def draw_panels(
    path: Path, runs: dict[str, Seeds], baselines: dict[str, str], draw: DrawMethod, *, x: str, y: str, title: str
) -> None:
    """Draw one panel per method that has a baseline, with shared axes, the baseline in the background."""
    shown = [method for method in runs if baselines.get(method) in runs] or [*runs]
    rows = -(-len(shown) // COLUMNS)
    columns = min(COLUMNS, len(shown))
    figure = Figure(figsize=(WIDTH, 0.7 + 1.9 * rows), layout="constrained", dpi=DPI)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    look = looks(shown, None)
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        method = shown[place]
        if (baseline := baselines.get(method, "")) in runs:
            draw(axes, runs[baseline], BASELINE, baseline)
        draw(axes, runs[method], look[method], method)
        axes.set_title(method, fontsize=SMALL + 1, color=look[method].colour, weight="bold")
        axes.tick_params(labelsize=SMALL, labelbottom=place + columns >= len(shown))
        axes.grid(alpha=0.3)
        if axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=SMALL - 1, frameon=False, handlelength=1.5)
    figure.suptitle(title, fontsize=SMALL + 2)
    figure.supxlabel(x, fontsize=SMALL + 1)
    figure.supylabel(y, fontsize=SMALL + 1)
    figure.savefig(path)


def draw_band(axes: Axes, x: list[int], heights: "np.ndarray[Any, Any]", look: Look, label: str) -> None:
    """Draw the mean over the seeds with a band of one standard deviation; `heights` has one row per seed."""
    every = max(1, len(x) // 6)
    mean = heights.mean(axis=0)
    axes.plot(x, mean, label=label, markevery=every, **look.line)
    if len(heights) > 1:
        spread = heights.std(axis=0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=look.colour, alpha=0.15, linewidth=0)

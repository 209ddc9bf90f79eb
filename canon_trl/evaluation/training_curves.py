"""The log of a training run as CSV, JSON and a picture."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from canon_trl.sampling.chunks import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCURACY_DRAWN = "dynamic_sampling/accuracy_drawn"
FIRST_COLUMNS = ("step", "epoch", "reward", "loss")
COLUMNS_OF_PANELS = 3
SAME = 1e-4  # a curve that moves by less, relative to its size, counts as constant


@dataclass(frozen=True)
class Panel:
    """A panel of the picture.

    Attributes:
        title: what is drawn, and its unit.
        lines: the column of the log to draw, by label. Each evaluation dataset has its own line.
        share: whether the values are shares, which the axis shows from 0 to 1.
        required: whether to draw it even if it is constant.
    """

    title: str
    lines: Mapping[str, str]
    share: bool = False
    required: bool = False


PANELS = (
    Panel("length (tokens)", {"train": "completions/mean_length", "held out": "eval_completions/mean_length"}),
    Panel("token entropy (nats)", {"train": "entropy", "held out": "eval_entropy"}),
    Panel("mu (weight of the inter-group comparison)", {"mu": "canon/mu"}, share=True),
    Panel("reward gap, higher minus lower half", {"gap": "canon/reward_gap"}),
    Panel("mean metric of the halves", {"higher half": "canon/metric_higher", "lower half": "canon/metric_lower"}),
)
OWN_METRIC = re.compile(r"metric/(.+)/mean")
NAMED_EVALUATION = re.compile(r"eval_(.+)_loss")
DATASET = "evaluated dataset"  # a column for the picture, not written to the files


def save_history(
    log_history: Sequence[Mapping[str, Any]], folder: Path | str, *, accuracy_reward: str, title: str | None = None
) -> list[Path]:
    """Write `metrics.csv`, `metrics.json` and `curves.png` from `trainer.state.log_history`.

    Args:
        log_history: one mapping per log entry, with `step`. The picture leaves out numbers that the run did not log
            or that never changed.
        folder: folder to write to; created if it is missing.
        accuracy_reward: name of the reward function to draw as accuracy.
        title: title of the picture; default the name of the folder.

    Returns:
        The three paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    csv, json_path, png = folder / "metrics.csv", folder / "metrics.json", folder / "curves.png"
    table = pandas.DataFrame(list(log_history))
    first = [column for column in FIRST_COLUMNS if column in table]
    with atomic_write(csv) as file:
        table[[*first, *(column for column in table if column not in first)]].to_csv(file, index=False)
    with atomic_write(json_path) as file:
        file.write_text(json.dumps(list(log_history), indent=1))
    table[DATASET] = [evaluated_dataset(entry) for entry in log_history]
    with atomic_write(png) as file:
        _draw(table, file, accuracy_reward, folder.resolve().name if title is None else title)
    return [csv, json_path, png]


def _draw(table: pandas.DataFrame, path: Path, accuracy_reward: str, title: str) -> None:
    # Imported here, so that importing the package does not build a font cache.
    from matplotlib.figure import Figure

    drawn = [(panel, lines) for panel in _panels(table, accuracy_reward) if (lines := _lines(table, panel))]
    columns = min(len(drawn), COLUMNS_OF_PANELS) or 1
    rows = -(-len(drawn) // columns) or 1
    figure = Figure(figsize=(4 * columns, 3 * rows + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    for place, (panel, lines) in enumerate(drawn, start=1):
        _draw_panel(figure.add_subplot(rows, columns, place), panel, lines)
    figure.savefig(path, dpi=110, format="png")  # the name may end in .partial


def _draw_panel(axes: "Axes", panel: Panel, lines: Mapping[str, pandas.Series]) -> None:
    from matplotlib.ticker import MaxNLocator

    for place, (label, points) in enumerate(lines.items()):
        marker = "o" if label.startswith("held out") or len(points) < 12 else None
        style = "-" if place == 0 or marker else "--"  # so that the lines differ without their colours
        axes.plot(points.index, points, style, marker=marker, markersize=4, label=label)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("optimiser step")
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(useOffset=False)
    if panel.share:
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    if len(lines) > 1:
        axes.legend(fontsize=8)


def _panels(table: pandas.DataFrame, accuracy_reward: str) -> list[Panel]:
    """Return the panels that this log may fill: accuracy, those of every run, and the user's metrics."""
    # With dynamic sampling, the mean reward covers only the groups that were kept.
    rewarded = f"rewards/{accuracy_reward}/mean"
    train = ACCURACY_DRAWN if ACCURACY_DRAWN in table else rewarded
    accuracy = {"train": train, "held out": f"eval_{rewarded}"}
    accuracy |= {
        f"held out, {column.split('/')[1]}": column for column in table if column.startswith("evaluation/avg@")
    }
    values = pandas.concat([*_lines(table, Panel("", accuracy, required=True)).values(), pandas.Series(dtype=float)])
    share = bool(values.between(0, 1).all())
    title = "accuracy (share of responses)" if share else f"{accuracy_reward} (mean reward)"
    first = Panel(title, accuracy, share=share, required=True)
    if values.empty:
        first = Panel("mean reward", {"train": "reward"}, required=True)
    halves = "canon/metric_higher" in table  # shown by their own panel
    metrics = [] if halves else [match for column in table if (match := OWN_METRIC.fullmatch(column))]
    return [first, *PANELS, *(Panel(f"{each[1]} (mean metric)", {"train": each[0]}) for each in metrics)]


def _lines(table: pandas.DataFrame, panel: Panel) -> dict[str, pandas.Series]:
    """Return the values to draw by step, by label; none if the panel would show constants."""
    found = {}
    for label, column in panel.lines.items():
        if column in table:
            points = table[["step", column]].astype(float).assign(dataset=table[DATASET]).dropna(subset=column)
            for dataset, part in points.groupby("dataset", sort=False):
                found[f"{label}: {dataset}" if dataset else label] = part.set_index("step")[column]
    changes = any(points.max() - points.min() > SAME * points.abs().max() for points in found.values())
    return found if changes or panel.required else {}


def evaluated_dataset(entry: Mapping[str, Any]) -> str:
    """Return the name of the dataset that a log entry evaluates, if the trainer has several; otherwise `""`."""
    return next((match[1] for name in entry if (match := NAMED_EVALUATION.fullmatch(name))), "")

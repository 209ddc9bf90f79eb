"""The log of a training run as CSV, JSON and a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

ACCURACY_DRAWN = "dynamic_sampling/accuracy_drawn"

# The panels: title with unit, and the columns of the log to draw, by label.
PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("accuracy (share of responses)", {"train": "{drawn}", "held out": "eval_rewards/{reward}/mean"}),
    ("length (tokens)", {"train": "completions/mean_length", "held out": "eval_completions/mean_length"}),
    ("token entropy (nats)", {"train": "entropy", "held out": "eval_entropy"}),
    ("mu (weight of the inter-group comparison)", {"mu": "canon/mu"}),
    ("reward gap, higher minus lower half", {"gap": "canon/reward_gap"}),
    ("mean metric of the halves", {"higher half": "canon/metric_higher", "lower half": "canon/metric_lower"}),
)


def save_history(log_history: Sequence[Mapping[str, Any]], folder: Path | str, *, accuracy_reward: str) -> list[Path]:
    """Write `metrics.csv`, `metrics.json` and `curves.png` from `trainer.state.log_history`.

    Args:
        log_history: one mapping per log entry, with `step`. The picture leaves out numbers that the run did not log.
        folder: folder to write to; created if it is missing.
        accuracy_reward: name of the reward function to draw as accuracy.

    Returns:
        The three paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    csv, json_path, png = folder / "metrics.csv", folder / "metrics.json", folder / "curves.png"
    table = pandas.DataFrame(list(log_history))
    table.to_csv(csv, index=False)
    json_path.write_text(json.dumps(list(log_history), indent=1))
    _draw(table, png, accuracy_reward)
    return [csv, json_path, png]


def _draw(table: pandas.DataFrame, path: Path, accuracy_reward: str) -> None:
    # Imported here, so that importing the package does not build a font cache.
    from matplotlib.figure import Figure

    # With dynamic sampling, the mean reward covers only the groups that were kept.
    drawn = ACCURACY_DRAWN if ACCURACY_DRAWN in table else f"rewards/{accuracy_reward}/mean"
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, (title, columns) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for label, column in columns.items():
            column = column.format(reward=accuracy_reward, drawn=drawn)
            if column in table:
                points = table[["step", column]].astype(float).dropna()
                axes.plot(points["step"], points[column], marker="o" if len(points) < 12 else None, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.3)
        if "mu" in columns:
            axes.set_ylim(-0.05, 1.05)
        if len(axes.lines) > 1:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)

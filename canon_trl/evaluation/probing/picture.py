"""The picture of a probe: prompts by accuracy, halves of metrics, gains and lengths of estimators."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from canon_trl.evaluation.estimates import Estimate
from canon_trl.evaluation.probing.estimator_statistics import EstimatorStatistics
from canon_trl.evaluation.probing.metric_statistics import MetricStatistics
from canon_trl.evaluation.probing.prompt_statistics import BINS, PromptStatistics
from canon_trl.sampling.chunks import atomic_write


def draw(
    prompts: PromptStatistics,
    metrics: Mapping[str, MetricStatistics],
    estimators: Mapping[str, EstimatorStatistics],
    path: Path,
) -> None:
    """Draw the four panels into a PNG file."""
    # Imported here, so that importing the package does not build a font cache.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4 + 0.22 * len(estimators)), layout="constrained")
    (histogram, halves), (gains, lengths) = figure.subplots(2, 2, height_ratios=(1, 0.6 + 0.08 * len(estimators)))
    edges = np.arange(BINS) / BINS
    histogram.bar(edges, prompts.histogram, width=0.9 / BINS, align="edge")
    histogram.set_title("prompts by accuracy", fontsize=10)
    histogram.set_xlabel(f"share of {prompts.num_samples} responses that are right")

    _intervals(halves, list(metrics), [each.gap for each in metrics.values()], shift=0.12, label="mean reward")
    ceilings = [each.ceiling_gap for each in metrics.values()]
    _intervals(halves, list(metrics), ceilings, shift=-0.12, label="best reward (ceiling)")
    halves.set_title("higher half minus lower half", fontsize=10)
    halves.legend(fontsize=8)

    ordered = sorted(estimators.items(), key=lambda each: np.nan_to_num(each[1].gain.mean, nan=-np.inf))
    labels = [label for label, _ in ordered]
    _intervals(gains, labels, [each.gain for _, each in ordered])
    gains.axvline(1, color="grey", linestyle=":")
    gains.set_title("first-order gain relative to Dr.GRPO, not a forecast", fontsize=10)
    _intervals(lengths, labels, [each.length for _, each in ordered])
    lengths.set_title("change of length, tokens per 0.01 reward gained by Dr.GRPO", fontsize=10)
    for axes in (halves, lengths):
        axes.axvline(0, color="grey", linewidth=0.8)
    for axes in (histogram, halves, gains, lengths):
        axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110, format="png")


def _intervals(
    axes: Any, labels: Sequence[str], estimates: Sequence[Estimate], *, shift: float = 0.0, label: str | None = None
) -> None:
    """Draw one point with its interval per row; an unknown interval is drawn as the point alone."""
    places = np.arange(len(labels)) + shift
    means = np.array([each.mean for each in estimates])
    bounds = np.array([[each.low, each.high] for each in estimates]).T
    errors = np.nan_to_num(np.abs(bounds - means))
    axes.errorbar(means, places, xerr=errors, fmt="o", markersize=4, linewidth=1, label=label)
    axes.set_yticks(np.arange(len(labels)), labels, fontsize=8)

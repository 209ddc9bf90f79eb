"""The entropy law R = -a * exp(H) + b predicts how much accuracy the remaining entropy can still buy
(https://huggingface.co/papers/2505.22617)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from canon_trl.evaluation.estimates import all_equal


@dataclass(frozen=True)
class EntropyLaw:
    """Accuracy as a function of the policy's entropy, R = -a * exp(H) + b (Eq. 6).

    Attributes:
        a, b: the coefficients, in the unit of the accuracy.
        ceiling: b - a, the predicted accuracy once all entropy is spent (H = 0).
        residual: root mean square of the residuals, in the unit of the accuracy.
        points: number of pairs in the fit.
    """

    a: float
    b: float
    residual: float
    points: int

    @property
    def ceiling(self) -> float:
        return self.b - self.a

    def accuracy(self, entropy: np.ndarray | float) -> np.ndarray | float:
        """Predict the accuracy at an entropy, in nats."""
        return self.b - self.a * np.exp(entropy)


def fit_entropy_law(entropy: Sequence[float], accuracy: Sequence[float]) -> EntropyLaw:
    """Fit the law by least squares; it is linear in exp(H).

    Args:
        entropy: mean token entropies in nats, from one run or several.
        accuracy: the accuracy at the same time as each entropy.

    Raises:
        ValueError: the lengths differ, a number is not finite, there are fewer than three pairs, or all entropies are
            the same.
    """
    h, r = np.asarray(entropy, dtype=float), np.asarray(accuracy, dtype=float)
    if h.shape != r.shape or h.ndim != 1:
        raise ValueError(f"entropy {h.shape} and accuracy {r.shape} must be lists of one length")
    if not (np.isfinite(h).all() and np.isfinite(r).all()):
        raise ValueError("entropy and accuracy must be finite")
    if len(h) < 3 or all_equal(h, scale=abs(h).max()):
        raise ValueError(
            f"cannot fit {len(h)} pairs with {len(np.unique(h))} different entropies; the fit needs at least 3 pairs "
            "and 2 different entropies"
        )
    terms = np.stack([-np.exp(h), np.ones_like(h)], axis=1)
    (a, b), *_ = np.linalg.lstsq(terms, r, rcond=None)
    residual = np.sqrt(np.mean((terms @ [a, b] - r) ** 2))
    return EntropyLaw(a=float(a), b=float(b), residual=float(residual), points=len(h))


def save_entropy_law(
    log_history: Sequence[Mapping[str, Any]], path: Path | str, *, accuracy_reward: str
) -> EntropyLaw:
    """Fit the law to a run's log and draw it with its points.

    It uses the accuracies and entropies of the held-out evaluations if there are at least three, and those of the
    training batches otherwise.

    Args:
        log_history: `trainer.state.log_history`.
        path: path of the picture.
        accuracy_reward: name of the reward function that measures accuracy.

    Raises:
        ValueError: the log has too few pairs, see [`fit_entropy_law`].
    """
    # Imported here, so that importing the package does not build a font cache.
    from matplotlib.figure import Figure

    table = pandas.DataFrame(list(log_history))
    for prefix in ("eval_", ""):
        columns = [f"{prefix}entropy", f"{prefix}rewards/{accuracy_reward}/mean"]
        pairs = table.reindex(columns=columns).astype(float).dropna()
        if len(pairs) >= 3:
            break
    entropy, accuracy = pairs[columns[0]], pairs[columns[1]]
    law = fit_entropy_law(entropy, accuracy)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(entropy, accuracy, s=12, label="held out" if prefix else "training batches")
    grid = np.linspace(0, entropy.max(), 200)
    axes.plot(grid, law.accuracy(grid), color="tab:orange", label=f"-{law.a:.3g} exp(H) + {law.b:.3g}")
    axes.axhline(law.ceiling, color="gray", linestyle=":", label=f"ceiling {law.ceiling:.3g}")
    axes.set_xlabel("token entropy H (nats)")
    axes.set_ylabel("accuracy")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return law

"""Evaluation: estimates with intervals, evaluation during training, learning curves and the entropy law."""

from canon_trl.evaluation.callback import EvaluationCallback
from canon_trl.evaluation.comparisons import Difference, paired_difference
from canon_trl.evaluation.entropy_law import EntropyLaw, fit_entropy_law, save_entropy_law
from canon_trl.evaluation.estimates import Estimate, avg_at_k, bootstrap_mean, majority_at_k, mean_share, pass_at_k
from canon_trl.evaluation.training_curves import save_history

__all__ = [
    "Difference",
    "EntropyLaw",
    "Estimate",
    "EvaluationCallback",
    "avg_at_k",
    "bootstrap_mean",
    "fit_entropy_law",
    "majority_at_k",
    "mean_share",
    "paired_difference",
    "pass_at_k",
    "save_entropy_law",
    "save_history",
]

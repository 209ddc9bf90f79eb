"""What came out of a run: its numbers as files, its curves as a picture, what they predict, and how good a model is."""

from canon_trl.evaluation.entropy_law import EntropyLaw, fit_entropy_law, save_entropy_law
from canon_trl.evaluation.estimates import Estimate, avg_at_k, bootstrap_mean, majority_at_k, pass_at_k
from canon_trl.evaluation.training_curves import save_history

__all__ = [
    "EntropyLaw",
    "Estimate",
    "avg_at_k",
    "bootstrap_mean",
    "fit_entropy_law",
    "majority_at_k",
    "pass_at_k",
    "save_entropy_law",
    "save_history",
]

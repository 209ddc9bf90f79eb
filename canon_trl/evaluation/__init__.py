"""Evaluation: estimates with intervals, evaluation during training, learning curves, the entropy law, the capability
boundary, the temperature to train at, and a probe before training.
"""

from canon_trl.evaluation.boundary import CapabilityBoundary, capability_boundary
from canon_trl.evaluation.callback import EvaluationCallback
from canon_trl.evaluation.comparisons import Difference, paired_difference
from canon_trl.evaluation.entropy_law import EntropyLaw, fit_entropy_law, save_entropy_law
from canon_trl.evaluation.estimates import Estimate, avg_at_k, bootstrap_mean, majority_at_k, mean_share, pass_at_k
from canon_trl.evaluation.probing.options import ProbeOptions
from canon_trl.evaluation.probing.report import ProbeReport
from canon_trl.evaluation.probing.run import probe
from canon_trl.evaluation.progress import CompactProgress
from canon_trl.evaluation.run_report import RunReport
from canon_trl.evaluation.temperature import SuggestedTemperature, suggest_temperature
from canon_trl.evaluation.training_curves import save_history

__all__ = [
    "CapabilityBoundary",
    "CompactProgress",
    "Difference",
    "EntropyLaw",
    "Estimate",
    "EvaluationCallback",
    "ProbeOptions",
    "ProbeReport",
    "RunReport",
    "SuggestedTemperature",
    "avg_at_k",
    "bootstrap_mean",
    "capability_boundary",
    "fit_entropy_law",
    "majority_at_k",
    "mean_share",
    "paired_difference",
    "pass_at_k",
    "probe",
    "save_entropy_law",
    "save_history",
    "suggest_temperature",
]

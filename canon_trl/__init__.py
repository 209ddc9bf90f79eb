"""Advantage estimators and entropy controls for TRL's GRPOTrainer; CANON is the flagship."""

from importlib.metadata import version

from canon_trl.advantages import requires_metrics
from canon_trl.config import AStarPOConfig, CANONConfig
from canon_trl.rollout import Rollout
from canon_trl.trainers import AStarPOTrainer, CANONTrainer, PluggableGRPOTrainer

__version__ = version("canon-trl")

__all__ = [
    "AStarPOConfig",
    "AStarPOTrainer",
    "CANONConfig",
    "CANONTrainer",
    "PluggableGRPOTrainer",
    "Rollout",
    "__version__",
    "requires_metrics",
]

"""Trainers: the hook into TRL and what is built on it."""

from canon_trl.trainers.astar_po import AStarPOTrainer
from canon_trl.trainers.astar_po_config import AStarPOConfig
from canon_trl.trainers.canon import CANONTrainer
from canon_trl.trainers.canon_config import CANONConfig
from canon_trl.trainers.pluggable import PluggableGRPOTrainer
from canon_trl.trainers.run_config import RunConfig

__all__ = ["AStarPOConfig", "AStarPOTrainer", "CANONConfig", "CANONTrainer", "PluggableGRPOTrainer", "RunConfig"]

"""Trainers: the hook into TRL and the trainers built on it."""

from canon_trl.hook.trainer import PluggableGRPOTrainer
from canon_trl.trainers.astar_po import AStarPOTrainer
from canon_trl.trainers.canon import CANONTrainer

__all__ = ["AStarPOTrainer", "CANONTrainer", "PluggableGRPOTrainer"]

"""Configurations, which reject bad options before a model is loaded."""

from canon_trl.config.astar_po import AStarPOConfig
from canon_trl.config.canon import CANONConfig
from canon_trl.config.run import RunConfig
from canon_trl.config.stages import StagesConfig

__all__ = ["AStarPOConfig", "CANONConfig", "RunConfig", "StagesConfig"]

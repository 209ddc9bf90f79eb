"""Advantage estimators and entropy controls for TRL's GRPOTrainer; CANON is the flagship.

Public names are imported on first use, so that importing a method, which is pure torch, loads no trainer.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from canon_trl.advantages import requires_metrics
    from canon_trl.config import AStarPOConfig, CANONConfig
    from canon_trl.rollout import Rollout
    from canon_trl.tokens import Tokens
    from canon_trl.trainers import AStarPOTrainer, CANONTrainer, PluggableGRPOTrainer

__version__ = version("canon-trl")

__all__ = [
    "AStarPOConfig",
    "AStarPOTrainer",
    "CANONConfig",
    "CANONTrainer",
    "PluggableGRPOTrainer",
    "Rollout",
    "Tokens",
    "__version__",
    "requires_metrics",
]

MODULES = {
    "AStarPOConfig": "config",
    "AStarPOTrainer": "trainers",
    "CANONConfig": "config",
    "CANONTrainer": "trainers",
    "PluggableGRPOTrainer": "trainers",
    "Rollout": "rollout",
    "Tokens": "tokens",
    "requires_metrics": "advantages",
}


if not TYPE_CHECKING:  # with __getattr__, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

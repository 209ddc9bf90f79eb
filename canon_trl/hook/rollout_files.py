"""The files that each rank has in a checkpoint: all ranks use theirs, or none does."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object

from canon_trl.guards.failures import SharedFailures
from canon_trl.hook.checkpoints import ROLLOUT_STATE

logger = get_logger(__name__)  # which speaks on the main process alone: every rank finds the same


def rollout_file(checkpoint: str | Path, rank: int) -> Path:
    return Path(checkpoint, ROLLOUT_STATE.format(rank=rank))


def load_rollout(checkpoint: str, rank: int, failures: SharedFailures) -> tuple[dict[str, Any] | None, list[int]]:
    """This rank's part of a rollout in flight, and the ranks that have none; called on all ranks alike.

    Raises:
        Exception: on every rank, what reading a file raised on one: it is torn, or has an object that may run code.
    """
    path, state = rollout_file(checkpoint, rank), None
    advice = "resume from an earlier checkpoint, or remove the file to have a rollout in flight sampled anew"
    with failures.shared(f"{path} cannot be read; {advice}"):
        state = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
    missing = [rank for rank, there in enumerate(gather_object([state is not None])) if not there]
    return state, missing


def warn_of_missing_random_states(checkpoint: str, accelerator: Accelerator) -> None:
    """Warn of ranks that resume with other random numbers than they would have drawn; called on all ranks."""
    name = "rng_state.pth" if accelerator.num_processes == 1 else f"rng_state_{accelerator.process_index}.pth"
    there = gather_object([Path(checkpoint, name).exists()])
    if not all(there):
        missing = [rank for rank, found in enumerate(there) if not found]
        logger.warning("%s has no random state of the ranks %s: they sample other responses", checkpoint, missing)

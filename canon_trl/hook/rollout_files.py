"""Each rank's files in a checkpoint: either all ranks use theirs, or none does."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object

from canon_trl.guards.failures import SharedFailures
from canon_trl.hook.checkpoints import ROLLOUT_STATE

logger = get_logger(__name__)  # logs on the main process only, since every rank finds the same


def without_images(prompt: Any) -> Any:
    """Leave the images out of a prompt or completion of the completions table; text is returned as it is."""
    if not isinstance(prompt, list):
        return prompt
    return [
        {**message, "content": [{"type": "image"} if part["type"] == "image" else part for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in prompt
    ]


def rollout_file(checkpoint: str | Path, rank: int) -> Path:
    return Path(checkpoint, ROLLOUT_STATE.format(rank=rank))


def load_rollout(checkpoint: str, rank: int, failures: SharedFailures) -> tuple[dict[str, Any] | None, list[int]]:
    """Load this rank's part of an unfinished rollout, and list the ranks without one. Every rank must call this.

    Raises:
        Exception: on every rank, if one cannot read its file: it is damaged, or has an object that may run code.
    """
    path, state = rollout_file(checkpoint, rank), None
    advice = "resume from an earlier checkpoint, or remove the file to sample the unfinished rollout again"
    with failures.shared(f"{path} cannot be read; {advice}"):
        state = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
    missing = [rank for rank, found in enumerate(gather_object([state is not None])) if not found]
    return state, missing


def warn_of_missing_random_states(checkpoint: str, accelerator: Accelerator) -> None:
    """Warn about ranks without a saved random state, which will sample other responses. Every rank must call this."""
    name = "rng_state.pth" if accelerator.num_processes == 1 else f"rng_state_{accelerator.process_index}.pth"
    found_on_ranks = gather_object([Path(checkpoint, name).exists()])
    if not all(found_on_ranks):
        missing = [rank for rank, found in enumerate(found_on_ranks) if not found]
        logger.warning("%s has no random state for the ranks %s: they sample other responses", checkpoint, missing)

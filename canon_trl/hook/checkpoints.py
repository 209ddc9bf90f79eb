"""Find the checkpoints that a run can resume from: complete ones, made with the options of this run."""

import json
import re
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from accelerate.utils import gather_object
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig

from canon_trl.config.run import decides_what_is_learnt
from canon_trl.guards.failures import SharedFailures
from canon_trl.hook.epoch_ends import epoch_had_ended
from canon_trl.sampling.chunks import atomic_write

logger = get_logger(__name__)  # logs on the main process only, since every rank finds the same

# The options that a checkpoint was made with. Written last, so that the file marks the checkpoint as complete.
RUN_OPTIONS = "run_options.json"

# Each rank's part of the rollout in flight. Written first, so that the file marks checkpoints of this package.
ROLLOUT_STATE = "rollout_state_{rank}.pt"


def options_of_run(args: GRPOConfig, **others: Any) -> dict[str, Any]:
    """Return everything that decides what a run learns, by name, in JSON's types: options of `args`, and `others`."""
    fields = {name: value for name, value in args.to_dict().items() if decides_what_is_learnt(name)}
    return json.loads(json.dumps(fields | others, default=str))


def mark_complete(checkpoint: Path, options: dict[str, Any]) -> None:
    """Mark the checkpoint as complete, and record its options."""
    with atomic_write(checkpoint / RUN_OPTIONS) as file:
        file.write_text(json.dumps(options, indent=1))


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete; one from another trainer is if it has the file that is written last."""
    if (checkpoint / ROLLOUT_STATE.format(rank=0)).exists():
        return (checkpoint / RUN_OPTIONS).exists()
    return (checkpoint / TRAINER_STATE_NAME).is_file()


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the checkpoints in an output folder, latest first."""
    found = [path for path in folder.glob("*/") if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def changed_options(checkpoint: Path, options: dict[str, Any]) -> list[str]:
    """Describe the options that differ from the checkpoint's; none if another trainer made it."""
    if not (checkpoint / RUN_OPTIONS).exists():
        return []
    saved = json.loads((checkpoint / RUN_OPTIONS).read_text())
    return [
        f"{name}={saved.get(name)!r} in the checkpoint, {options.get(name)!r} now"
        for name in sorted(saved.keys() | options.keys())
        if saved.get(name) != options.get(name)
    ]


def find_checkpoint(
    requested: str | bool | None, folder: Path, options: dict[str, Any], *, allow_changes: bool
) -> str | None:
    """Return the checkpoint to resume from, or `None` to begin a run.

    Args:
        requested: a checkpoint; `True` for the latest complete one in the output folder; `None` or `False` to begin a
            run.
        folder: the output folder.
        options: the options of this run, from [`options_of_run`].
        allow_changes: whether to accept a checkpoint that was made with other options.

    Raises:
        ValueError: the checkpoint is missing or incomplete, or was made with other options; or a run would begin in a
            folder that has checkpoints of another run.
    """
    found = checkpoints_of(folder)
    complete = [checkpoint for checkpoint in found if is_complete(checkpoint)]
    if not requested:
        for checkpoint in complete:
            foreign = not (checkpoint / RUN_OPTIONS).exists()
            if changed := ["it was made by another trainer"] if foreign else changed_options(checkpoint, options):
                raise ValueError(
                    f"output_dir={str(folder)!r} has {checkpoint.name} of another run ({'; '.join(changed)}); choose "
                    "another output_dir, or remove the checkpoint"
                )
        return None
    if requested is True:
        if not complete:
            logger.warning("%s has no complete checkpoint to resume from: training begins at step 0", folder)
            return None
        checkpoint = complete[0]
        if checkpoint != found[0]:
            logger.warning("%s is incomplete: resuming from %s", found[0], checkpoint)
    else:
        checkpoint = Path(requested)
        if not checkpoint.is_dir():
            raise ValueError(
                f"resume_from_checkpoint={requested!r} does not exist; {folder} has {list_names(complete)}"
            )
        if not is_complete(checkpoint):
            raise ValueError(
                f"resume_from_checkpoint={requested!r} is incomplete, or not a checkpoint; "
                f"{folder} has {list_names(complete)}"
            )
    if not has_optimizer(checkpoint):
        raise ValueError(
            f"{checkpoint} has no state of the optimiser and the learning rate, as with save_only_model=True; to "
            "begin a run with its weights, pass it as the model and choose another output_dir"
        )
    if changed := changed_options(checkpoint, options):
        if not allow_changes:
            raise ValueError(
                f"{checkpoint} was made with other options: {'; '.join(changed)}. Resume with the same options, or "
                "set resume_with_changes=True"
            )
        logger.warning("%s was made with other options: %s", checkpoint, "; ".join(changed))
    return str(checkpoint)


def has_optimizer(checkpoint: Path) -> bool:
    """Whether a checkpoint has the state of the optimiser and the learning rate.

    Without it transformers silently begins new ones. transformers writes `optimizer*` and `scheduler.pt`; DeepSpeed
    writes a file `latest` that names its folder.
    """
    of_transformers = any(checkpoint.glob("optimizer*")) and (checkpoint / SCHEDULER_NAME).exists()
    return of_transformers or (checkpoint / "latest").exists()


def find_together(
    requested: str | bool | None,
    folder: Path,
    options: dict[str, Any],
    *,
    allow_changes: bool,
    failures: SharedFailures,
) -> str | None:
    """Call [`find_checkpoint`] on all ranks, and check that they agree.

    Raises:
        ValueError: as for [`find_checkpoint`], on every rank; also if the ranks find different checkpoints because
            they do not share the folder.
    """
    with failures.shared():
        found = find_checkpoint(requested, folder, options, allow_changes=allow_changes)
    names_found = gather_object([Path(found).name if found is not None else "none"])
    if len(set(names_found)) > 1:
        raise ValueError(
            f"the ranks find different checkpoints to resume from, by rank: {names_found}; "
            f"output_dir={str(folder)!r} must be a folder that all ranks share"
        )
    return found


def passes_and_batches(checkpoint: str, batches_per_step: int) -> tuple[int, int]:
    """Count the passes over a stream that a checkpoint has completed, and the batches of the next one.

    transformers does not know the length of a stream, and counts all steps of the run as one epoch. It saves
    `passes + steps / max_steps` as the epoch.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
    passes, share = divmod(state.epoch or 0.0, 1)
    if epoch_had_ended(state):
        return int(passes) + 1, 0
    return int(passes), round(share * state.max_steps * batches_per_step)


def list_names(checkpoints: list[Path]) -> str:
    return ", ".join(checkpoint.name for checkpoint in checkpoints) or "no complete checkpoint"

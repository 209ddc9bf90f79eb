"""Which checkpoints can be resumed from: those that are whole, and made with the options of this run."""

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

logger = get_logger(__name__)  # which speaks on the main process alone: every rank finds the same

# Written last into a checkpoint: there where everything else is. It has the options that the checkpoint was made with.
RUN_OPTIONS = "run_options.json"

# Every rank's part of a rollout in flight, written first: there in all checkpoints of this package's trainers.
ROLLOUT_STATE = "rollout_state_{rank}.pt"


def options_of_run(args: GRPOConfig, **others: Any) -> dict[str, Any]:
    """The options that decide what a run learns, in JSON's types, and what else does, by name."""
    fields = {name: value for name, value in args.to_dict().items() if decides_what_is_learnt(name)}
    return json.loads(json.dumps(fields | others, default=str))


def mark_whole(checkpoint: Path, options: dict[str, Any]) -> None:
    """Say that everything of the checkpoint has been written, and with which options."""
    with atomic_write(checkpoint / RUN_OPTIONS) as file:
        file.write_text(json.dumps(options, indent=1))


def is_whole(checkpoint: Path) -> bool:
    """Whether all of it was written; of another trainer's, whether there is the file that it writes last."""
    if (checkpoint / ROLLOUT_STATE.format(rank=0)).exists():
        return (checkpoint / RUN_OPTIONS).exists()
    return (checkpoint / TRAINER_STATE_NAME).is_file()


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints in an output folder, the last one first."""
    found = [path for path in folder.glob("*/") if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def changed_options(checkpoint: Path, options: dict[str, Any]) -> list[str]:
    """What differs from the run that made the checkpoint, in words; nothing where another trainer made it."""
    if not (checkpoint / RUN_OPTIONS).exists():
        return []
    there = json.loads((checkpoint / RUN_OPTIONS).read_text())
    return [
        f"{name}={there.get(name)!r} there, {options.get(name)!r} here"
        for name in sorted(there.keys() | options.keys())
        if there.get(name) != options.get(name)
    ]


def find_checkpoint(
    asked: str | bool | None, folder: Path, options: dict[str, Any], *, allow_changes: bool
) -> str | None:
    """The checkpoint to resume from, or `None` to begin.

    Args:
        asked: a checkpoint; `True` for the last one of the output folder that is whole; nothing to begin anew.
        folder: the output folder.
        options: those of this run, from [`options_of_run`].
        allow_changes: whether a checkpoint that was made with other options will do.

    Raises:
        ValueError: the checkpoint is missing, or not whole, or was made with other options; or a run is to begin in a
            folder that has checkpoints of another run.
    """
    there = checkpoints_of(folder)
    whole = [checkpoint for checkpoint in there if is_whole(checkpoint)]
    if not asked:
        for checkpoint in whole:
            foreign = not (checkpoint / RUN_OPTIONS).exists()
            if changed := ["it was made by another trainer"] if foreign else changed_options(checkpoint, options):
                raise ValueError(
                    f"output_dir={str(folder)!r} has {checkpoint.name} of another run ({'; '.join(changed)}); choose "
                    "another output_dir, or remove what is there"
                )
        return None
    if asked is True:
        if not whole:
            logger.warning("%s has no whole checkpoint to resume from: training begins at step 0", folder)
            return None
        checkpoint = whole[0]
        if checkpoint != there[0]:
            logger.warning("%s is not whole, its writing was cut off: resuming from %s", there[0], checkpoint)
    else:
        checkpoint = Path(asked)
        if not checkpoint.is_dir():
            raise ValueError(f"resume_from_checkpoint={asked!r} does not exist; {folder} has {names(whole)}")
        if not is_whole(checkpoint):
            raise ValueError(
                f"resume_from_checkpoint={asked!r} is not whole: its writing was cut off, or it is no checkpoint; "
                f"{folder} has {names(whole)}"
            )
    if not has_optimizer(checkpoint):
        raise ValueError(
            f"{checkpoint} has no state of the optimiser and the learning rate to resume from, as with "
            "save_only_model=True; to begin with its weights, give it as the model, with another output_dir"
        )
    if changed := changed_options(checkpoint, options):
        if not allow_changes:
            raise ValueError(
                f"{checkpoint} was made with other options: {'; '.join(changed)}. Resume with the same, or set "
                "resume_with_changes=True"
            )
        logger.warning("%s was made with other options: %s", checkpoint, "; ".join(changed))
    return str(checkpoint)


def has_optimizer(checkpoint: Path) -> bool:
    """Whether the optimiser and the learning rate have a state there, without which transformers begins new ones.

    Those of transformers are `optimizer*` and `scheduler.pt`; DeepSpeed's are where `latest` says.
    """
    own = any(checkpoint.glob("optimizer*")) and (checkpoint / SCHEDULER_NAME).exists()
    return own or (checkpoint / "latest").exists()


def find_together(
    asked: str | bool | None,
    folder: Path,
    options: dict[str, Any],
    *,
    allow_changes: bool,
    failures: SharedFailures,
) -> str | None:
    """As [`find_checkpoint`], on all ranks alike.

    Raises:
        ValueError: on every rank; also where they find different ones, because they look into different folders.
    """
    with failures.shared():
        found = find_checkpoint(asked, folder, options, allow_changes=allow_changes)
    names_found = gather_object([Path(found).name if found is not None else "none"])
    if len(set(names_found)) > 1:
        raise ValueError(
            f"the ranks find different checkpoints to resume from, in the order of their ranks: {names_found}; "
            f"output_dir={str(folder)!r} must be a folder that all of them share"
        )
    return found


def passes_and_batches(checkpoint: str, batches_per_step: int) -> tuple[int, int]:
    """How often a stream had been gone through when the checkpoint was written, and the batches of the pass begun.

    transformers takes all steps of the run for one epoch of a stream, whose length it does not know, and notes how
    far into one pass that is: `passes + steps / max_steps`.
    """
    there = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
    passes, share = divmod(there.epoch or 0.0, 1)
    if epoch_had_ended(there):
        return int(passes) + 1, 0
    return int(passes), round(share * there.max_steps * batches_per_step)


def names(checkpoints: list[Path]) -> str:
    return ", ".join(checkpoint.name for checkpoint in checkpoints) or "no whole checkpoint"

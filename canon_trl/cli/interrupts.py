"""What a training run says after Ctrl-C: where the curves so far are, and the command that resumes it."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from trl import GRPOTrainer

from canon_trl.cli.errors import as_command, begin_work
from canon_trl.hook.checkpoints import checkpoints_of, has_optimizer, is_complete


class WorkBegins(TrainerCallback):
    """Notes that training begins, after which errors keep their traceback."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        begin_work()


@contextmanager
def explains_interrupt(trainer: GRPOTrainer, flags: Sequence[str] | None) -> Iterator[None]:
    """After Ctrl-C, add a note to the exception that says how to resume; the trainer has drawn the curves so far.

    After any error, also close the progress bars, which would otherwise be drawn again below the message.

    Args:
        trainer: the trainer that runs in this context.
        flags: those of the command. Default: those of the process.
    """
    trainer.add_callback(WorkBegins)
    try:
        yield
    except BaseException as stopped:
        close_bars(trainer)
        if isinstance(stopped, KeyboardInterrupt) and trainer.is_world_process_zero():
            stopped.add_note(explain(trainer, sys.argv[1:] if flags is None else flags))
        raise


def close_bars(trainer: GRPOTrainer) -> None:
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
            callback.on_evaluate(trainer.args, trainer.state, trainer.control)
            callback.on_train_end(trainer.args, trainer.state, trainer.control)


def explain(trainer: GRPOTrainer, flags: Sequence[str]) -> str:
    """Return where the curves are and how to resume."""
    folder, state = Path(trainer.args.output_dir), trainer.state
    lines = [f"interrupted at step {state.global_step} of {state.max_steps}"]
    if state.log_history:
        lines[0] += f"; metrics.csv, metrics.json and curves.png so far: {folder}"
    checkpoints = [each for each in checkpoints_of(folder) if is_complete(each) and has_optimizer(each)]
    if checkpoints:
        command = [*without_resume(flags), "--resume_from_checkpoint", str(checkpoints[0])]
        lines += ["to resume:", as_command("train", command, processes=trainer.accelerator.num_processes)]
    else:
        lines.append(
            f"there is no checkpoint to resume from (save_strategy={trainer.args.save_strategy.value!r}, "
            f"save_steps={trainer.args.save_steps:g})"
        )
    return "\n".join(lines)


def without_resume(flags: Sequence[str]) -> list[str]:
    """Return the flags without `--resume_from_checkpoint` and its value."""
    kept, skip = [], False
    for flag in flags:
        if flag.split("=")[0].replace("-", "_") == "__resume_from_checkpoint":
            skip = "=" not in flag
        elif not skip:
            kept.append(flag)
        else:
            skip = False
    return kept

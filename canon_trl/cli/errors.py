"""How a command ends: an error of the user in one line, a fault of the program with its traceback.

A ValueError, ImportError or OSError is an error of the user if it is raised before the work begins, that is before the
first training step or the first response. So is a TypeError that a `raise` statement raised; one that Python itself
raised is a fault. Once the work has begun, only those count that a check of canon_trl raised. Everything else, such as
an exception in a reward function, keeps its traceback.
"""

import dis
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

USER_ERRORS = (ValueError, TypeError, ImportError, OSError)
FAILED, INTERRUPTED, CLOSED_PIPE = 2, 130, 141  # exit codes

# Warnings of other libraries that users can do nothing about, as the beginnings of their texts.
KNOWN_NOISE = (
    r"`(is_)?gradient_checkpointing\w*` is deprecated",
    r"'pin_memory' argument is set as true but no accelerator is found",
)


@dataclass
class Progress:
    """Whether the work of the current command has begun."""

    begun: bool = False


PROGRESS = Progress()


def begin_work() -> None:
    """Note that options and data are checked, and the work begins."""
    PROGRESS.begun = True


@contextmanager
def ends_in_one_line(*, debug: bool) -> Iterator[None]:
    """End the process with one line and exit code 2 after an error of the user; `debug` adds the traceback."""
    PROGRESS.begun = False
    for text in KNOWN_NOISE:
        warnings.filterwarnings("ignore", text)
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has ended, as in `canon-trl recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at the end
        sys.exit(CLOSED_PIPE)
    except USER_ERRORS as error:
        if not is_user_error(error):
            raise
        if debug:
            traceback.print_exc()
        sys.stdout.flush()
        print(f"error: {in_one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(FAILED)


def is_user_error(error: BaseException) -> bool:
    """Whether an error is the user's, by the rule above."""
    last = last_call(error)
    if PROGRESS.begun:
        return raised_explicitly(last) and last.tb_frame.f_globals.get("__name__", "").startswith("canon_trl.")
    return raised_explicitly(last) or not isinstance(error, TypeError)


def last_call(error: BaseException) -> TracebackType:
    """Return the innermost entry of the traceback."""
    last = error.__traceback__
    assert last is not None  # it was raised
    while last.tb_next is not None:
        last = last.tb_next
    return last


def raised_explicitly(last: TracebackType) -> bool:
    """Whether a `raise` statement raised the error, not an operation or a function written in C."""
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def in_one_line(error: BaseException) -> str:
    """Return the message and the notes of an error, without line breaks."""
    message = str(error) or type(error).__name__
    notes = [note for note in getattr(error, "__notes__", []) if note.removeprefix("in ") not in message]
    return "; ".join(" ".join(text.split()) for text in (message, *notes))


def resume_hint(stopped: KeyboardInterrupt, command: str, flags: Sequence[str]) -> str:
    """Return what to tell the user after Ctrl-C: the notes of the exception, or else that the command resumes."""
    if notes := getattr(stopped, "__notes__", []):
        return "\n".join(notes)
    if command == "train":
        return "interrupted before training began"
    return f"interrupted; to resume, run the same command again:\n{as_command(command, flags)}"


def as_command(command: str, flags: Sequence[str], *, processes: int = 1) -> str:
    """Return a command as one types it."""
    launcher = "canon-trl" if processes == 1 else "accelerate launch [OPTIONS AS BEFORE] -m canon_trl"
    return f"    {launcher} {shlex.join([command, *flags])}"

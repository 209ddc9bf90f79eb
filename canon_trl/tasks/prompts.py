"""Split generated prompts, build datasets of distinct prompts, and get the text that rewards read."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


SPLITS = ("train", "test")


def split_of(prompt: str) -> str:
    """Return the split of a prompt: "train" for about nine in ten, "test" for the others.

    It depends only on the prompt's text, so no prompt is in both splits, whatever the seeds.
    """
    return "test" if zlib.crc32(prompt.encode()) % 10 == 0 else "train"


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {split!r}")


def distinct(problems: Iterable[tuple[str, str]], size: int, *, max_size: int) -> Dataset:
    """Return the first `size` problems with different prompts, in the columns `prompt` and `answer`.

    A smaller dataset is a prefix of a larger one. `max_size` must be well below the number of possible prompts;
    otherwise drawing distinct ones would stall.
    """
    if size not in range(1, max_size + 1):
        raise ValueError(f"size must be a whole number from 1 to {max_size}, got {size!r}")
    # Imported here, so that rewards and problems work without loading datasets.
    from datasets import Dataset

    answers: dict[str, str] = {}  # keeps the order of drawing
    for prompt, answer in problems:
        answers.setdefault(prompt, answer)
        if len(answers) == size:
            break
    return Dataset.from_dict({"prompt": list(answers), "answer": list(answers.values())})


def text_of(given: str | list[Mapping[str, Any]]) -> str:
    """Return the text of a prompt or completion; for a conversation, the text of its last message."""
    return given if isinstance(given, str) else given[-1]["content"]

"""Splits of generated prompts, datasets of distinct ones, and the text of what rewards are given."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


SPLITS = ("train", "test")


def split_of(prompt: str) -> str:
    """Tell which split a prompt belongs to: about nine in ten are "train", the others "test".

    The split is a function of the prompt's text alone, so no prompt can be in both, whatever the seeds.
    """
    return "test" if zlib.crc32(prompt.encode()) % 10 == 0 else "train"


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {split!r}")


def distinct(problems: Iterable[tuple[str, str]], size: int, *, max_size: int) -> Dataset:
    """The first `size` problems with different prompts, columns `prompt` and `answer`.

    So a smaller dataset is a prefix of a larger one. `max_size` is well below the number of prompts that there are, or
    drawing distinct ones would stall.
    """
    if size not in range(1, max_size + 1):
        raise ValueError(f"size must be a whole number from 1 to {max_size}, got {size!r}")
    # Here rather than at the top, so that rewards and problems can be had without loading datasets.
    from datasets import Dataset

    answers: dict[str, str] = {}  # keeps the order of drawing
    for prompt, answer in problems:
        answers.setdefault(prompt, answer)
        if len(answers) == size:
            break
    return Dataset.from_dict({"prompt": list(answers), "answer": list(answers.values())})


def text_of(given: str | list[Mapping[str, Any]]) -> str:
    """The text of a prompt or completion; of a conversation that of its last message."""
    return given if isinstance(given, str) else given[-1]["content"]

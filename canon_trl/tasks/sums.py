"""Sums of two numbers after three examples, for a pretrained language model.

A prompt is three lines such as `2+3=5` and then `12+7=`; the first whole number of a completion is the answer. The
operands go up to 20 in the task `sums` and up to 50 in the task `large_sums`.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from canon_trl.tasks.prompts import check_split, distinct, text_of

if TYPE_CHECKING:
    from datasets import Dataset

EXAMPLES = "2+3=5\n7+4=11\n6+9=15\n"


def draw_problems(split: str, seed: int, *, largest: int = 20) -> list[tuple[str, str]]:
    """Return all problems of a split in the order that the seed gives: prompts with their answers.

    A quarter of the pairs of operands is held out, the same whatever the seed.
    """
    check_split(split)
    pairs = [
        (left, right)
        for left, right in product(range(1, largest + 1), repeat=2)
        if (zlib.crc32(f"{left}+{right}".encode()) % 4 == 0) == (split == "test")
    ]
    random.Random(seed).shuffle(pairs)
    return [(f"{EXAMPLES}{left}+{right}=", str(left + right)) for left, right in pairs]


def dataset(split: str, size: int, seed: int = 0, *, largest: int = 20) -> Dataset:
    """Build `size` distinct prompts of a split with their answers; a seed fixes the rows."""
    problems = draw_problems(split, seed, largest=largest)
    return distinct(problems, size, max_size=len(problems))


def answer_of(completion: str) -> str | None:
    """Return the whole number that a completion begins with, or None."""
    found = re.match(r"\s*(\d+)", completion)
    return found and found[1]


def style_of(completion: str) -> str | None:
    """Return "number" if a completion begins with a number, and None otherwise."""
    return None if answer_of(completion) is None else "number"


def accuracy(completions: Sequence[str | list[Mapping[str, Any]]], answer: list[str], **kwargs: Any) -> list[float]:
    """Reward 1.0 if a completion begins with the answer, else 0.0.

    The last message of a conversational completion counts. `kwargs` has TRL's other columns, which are not used.
    """
    return [
        float(answer_of(text_of(completion)) == right) for completion, right in zip(completions, answer, strict=True)
    ]

"""Arithmetic with a hint: copy a digit that is right for 40% of the prompts, or learn to work the answer out.

A prompt is one of the arithmetic task's problems with a digit before the `=`, for example `7+8*3-9+4*6 0=`. The digit
is the answer for a share `HINT_RIGHT` of the prompts and another digit for the others; nothing shows which. A solution
copies the digit, `#0`, or works through the running values, `55600#0`. Copying is right more often at first and can
never become better; working is rarely right at first and can become always right.

So the half of a group that wins now, the shorter one, has the lower ceiling. In large groups the expected gradient of
CANON is 2 * mu * B + W, where B makes the winning half more frequent and W improves each half. Theory therefore
predicts, before any run: CANON-Inter by length (mu = 1) drives out working faster than Dr.GRPO (mu = 0.5) does, and
ends near 0.4; CANON-Intra by length (mu = 0) drops B, keeps working alive while it is learnt, and ends highest; a
random split changes nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from canon_trl.tasks import arithmetic
from canon_trl.tasks.prompts import distinct

if TYPE_CHECKING:
    from datasets import Dataset

HINT_RIGHT = 0.4  # share of the prompts whose hint is right
COPY_SHARE = 0.5  # share of the pretraining examples that copy the hint
NOISE = 0.4  # probability that a worked step's value is replaced by a uniformly random digit
STYLES = {"copy": re.compile(r"#\d"), "work": re.compile(rf"\d{{{arithmetic.NUM_OPERATORS}}}#\d")}


def draw_problems(split: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Draw prompts of one split forever, each with its answer. The problem without its hint decides the split."""
    for problem in arithmetic.draw_prompts(split, rng):
        answer = str(arithmetic.running_values(problem)[-1])
        wrong = [digit for digit in "0123456789" if digit != answer]
        hint = answer if rng.random() < HINT_RIGHT else rng.choice(wrong)
        yield f"{problem[:-1]} {hint}=", answer


def hint_of(prompt: str) -> str:
    """Return the hint of a prompt."""
    return prompt[-2]


def problem_of(prompt: str) -> str:
    """Return the prompt without its hint."""
    return prompt.partition(" ")[0] + "="


def dataset(split: str, size: int, seed: int = 0) -> Dataset:
    """Build `size` distinct prompts of a split with their answers, both as strings; a seed fixes the rows."""
    return distinct(draw_problems(split, random.Random(seed)), size, max_size=arithmetic.MAX_DATASET_SIZE)


def draw_examples(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Draw prompts of the training split with the solutions that the base model learns from."""
    return [(prompt, solution(prompt, rng)) for prompt, _ in islice(draw_problems("train", rng), count)]


def solution(prompt: str, rng: random.Random) -> str:
    """Write a solution in one of the two styles, with their shares and their rates of mistakes."""
    if rng.random() < COPY_SHARE:
        return f"#{hint_of(prompt)}"
    values = arithmetic.running_values(
        problem_of(prompt), lambda value: rng.randrange(10) if rng.random() < NOISE else value
    )
    return "".join(map(str, values)) + f"#{values[-1]}"


def style_of(completion: str) -> str | None:
    """Return the style of a completion, or None if it has none of the styles."""
    return next((name for name, pattern in STYLES.items() if pattern.fullmatch(completion)), None)

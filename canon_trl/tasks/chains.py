"""Chains of arithmetic with one bit as the answer: guessing stays right in half of the cases, long reasoning does not.

A prompt is a chain of eight operators such as `7+8*3-9+4*6-2+5*3=`, evaluated as in the arithmetic task, from left to
right and modulo 10. The answer is 1 if the last value is at least 5, else 0. A solution guesses, `#1`, or writes all
eight running values first, `55600839#1`. The model can't do eight steps within one token, so guessing plateaus near
one half, and only responses that reason longer can become right.

This is the setting of long reasoning that CANON was made for, in miniature: the longer half of a group wins now and
also has the higher ceiling. Theory therefore predicts, before any run: CANON-Inter by length (mu = 1) moves to the
long style faster than Dr.GRPO (mu = 0.5), CANON-Intra by length (mu = 0) more slowly, and a random split like
Dr.GRPO; given enough steps, all end near 1. Since the long style has a share of 15%, the gain is small: for a style
with a share of 20% and 16 responses, Inter multiplies the part of the gradient between the halves by 1.25, not by 2.
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

NUM_OPERATORS = 8
STEPS_SHARE = 0.15  # share of the pretraining examples that write the running values
NOISE = 0.05  # probability that a running value is replaced by a uniformly random digit
STYLES = {"guess": re.compile(r"#[01]"), "steps": re.compile(rf"\d{{{NUM_OPERATORS}}}#[01]")}


def answer_to(value: int) -> str:
    """Return the answer for the last value of a chain."""
    return str(int(value >= 5))


def draw_prompts(split: str, rng: random.Random) -> Iterator[str]:
    """Draw prompts of one split forever, uniformly and with replacement."""
    return arithmetic.draw_prompts(split, rng, num_operators=NUM_OPERATORS)


def dataset(split: str, size: int, seed: int = 0) -> Dataset:
    """Build `size` distinct prompts of a split with their answers, both as strings; a seed fixes the rows."""
    prompts = draw_prompts(split, random.Random(seed))
    problems = ((prompt, answer_to(arithmetic.running_values(prompt)[-1])) for prompt in prompts)
    return distinct(problems, size, max_size=arithmetic.MAX_DATASET_SIZE)


def draw_examples(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Draw prompts of the training split with the solutions that the base model learns from."""
    return [(prompt, solution(prompt, rng)) for prompt in islice(draw_prompts("train", rng), count)]


def solution(prompt: str, rng: random.Random) -> str:
    """Write a solution in one of the two styles, with their shares and the rate of mistakes of the steps."""
    if rng.random() >= STEPS_SHARE:
        return f"#{answer_to(arithmetic.running_values(prompt)[-1])}"
    values = arithmetic.running_values(prompt, lambda value: rng.randrange(10) if rng.random() < NOISE else value)
    return "".join(map(str, values)) + f"#{answer_to(values[-1])}"


def style_of(completion: str) -> str | None:
    """Return the style of a completion, or None if it has none of the styles."""
    return next((name for name, pattern in STYLES.items() if pattern.fullmatch(completion)), None)

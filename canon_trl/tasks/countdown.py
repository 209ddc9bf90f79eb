"""Countdown: reach a target with an expression that uses each of three digits once.

A prompt is `3,9,5>42=`, and a right completion `(9+5)*3`. Problems and scoring are reasoning-gym's. The model must
find a right expression in one go, without intermediate steps, so a small model is right on some samples of most
prompts: accuracy is low, and pass@k rises far above it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from canon_trl.tasks.prompts import check_split, distinct, split_of, text_of

if TYPE_CHECKING:
    from datasets import Dataset
    from reasoning_gym.factory import ProceduralDataset

MAX_DATASET_SIZES = {"train": 2_500, "test": 320}  # under half of all prompts, 5,818 and 660
OPERATORS = ("+", "-", "*")
NUM_DIGITS = 3
MIN_TARGET, MAX_TARGET = 10, 99  # two characters each
HASTY_SHARE = 0.85  # share of pretraining examples that join the digits in order with random operators
STYLES = ("expression",)
SYMBOLS = "0123456789+-*=,>()"

# Only text of this form is evaluated, since a model may write anything: `9**9**9` would take forever.
_EXPRESSION = re.compile(r"(?:\(*[1-9]\)*[-+*])*\(*[1-9]\)*")
_PROBLEMS_PER_SEED = 10_000_000


@cache
def _generator() -> ProceduralDataset:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError("the countdown task needs reasoning-gym; install canon-trl[tasks]") from error
    return reasoning_gym.create_dataset(
        "countdown",
        size=2**62,  # it makes problems on demand
        seed=0,
        min_numbers=NUM_DIGITS,
        max_numbers=NUM_DIGITS,
        min_value=1,
        max_value=9,
        min_target=MIN_TARGET,
        max_target=MAX_TARGET,
        operators=OPERATORS,
    )


def draw_problems(split: str, seed: int) -> Iterator[tuple[str, str]]:
    """Draw problems of one split: prompts, each with an expression that solves it."""
    check_split(split)
    for place in range(seed * _PROBLEMS_PER_SEED, (seed + 1) * _PROBLEMS_PER_SEED):
        problem = _generator()[place]["metadata"]
        prompt = f"{','.join(map(str, problem['numbers']))}>{problem['target']}="
        if split_of(prompt) == split:
            yield prompt, problem["expression"].replace(" ", "")


def dataset(split: str, size: int, seed: int = 0) -> Dataset:
    """Build `size` distinct prompts of a split, each with an expression that solves it; a seed fixes the rows."""
    check_split(split)
    return distinct(draw_problems(split, seed), size, max_size=MAX_DATASET_SIZES[split])


@cache
def _pretraining_problems() -> list[tuple[str, str]]:
    """Draw the problems once, since each takes milliseconds."""
    return list(islice(draw_problems("train", seed=1), 10_000))


def draw_examples(rng: random.Random, count: int) -> Iterator[tuple[str, str]]:
    """Draw prompts of the training split with the solutions that the base model learns from, most of them wrong."""
    for prompt, expression in rng.choices(_pretraining_problems(), k=count):
        digits = prompt.partition(">")[0].split(",")
        hasty = digits[0] + "".join(rng.choice(OPERATORS) + digit for digit in digits[1:])
        yield prompt, hasty if rng.random() < HASTY_SHARE else expression


def style_of(completion: str) -> str | None:
    """Return "expression" for an expression of digits, and None for other text."""
    return "expression" if _EXPRESSION.fullmatch(completion) else None


def accuracy(completions: Sequence[str | list[Mapping[str, Any]]], prompts: list[str], **kwargs: Any) -> list[float]:
    """Reward 1.0 if a completion is an expression that gives the target and uses every digit once, else 0.0.

    The last message of a conversational completion counts. `kwargs` has TRL's other columns, which are not used.
    """
    rewards = []
    for completion, prompt in zip(completions, prompts, strict=True):
        text = text_of(completion)
        digits, _, target = text_of(prompt).partition(">")
        problem = {"numbers": [int(digit) for digit in digits.split(",")], "target": int(target.rstrip("="))}
        right = style_of(text) is not None and _generator().score_answer(text, {"metadata": problem}) == 1.0
        rewards.append(float(right))
    return rewards

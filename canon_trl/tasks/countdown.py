"""Countdown: three digits and a target, to be reached by an expression that uses every digit once.

A prompt is `3,9,5>42=`, and a right completion `(9+5)*3`. Problems and scoring are reasoning-gym's. A right
expression has to be found in one go, without working it out, so a small model is right now and then, on a different
sample each time: accuracy is low, and pass@k rises far above it.
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

MAX_DATASET_SIZES = {"train": 2_500, "test": 320}  # under half of the prompts that there are: 5,818 and 660
OPERATORS = ("+", "-", "*")
NUM_DIGITS = 3
MIN_TARGET, MAX_TARGET = 10, 99  # two characters each
HASTY_SHARE = 0.85  # of the pretraining examples: the digits as they stand, joined by operators drawn at random
STYLES = ("expression",)
SYMBOLS = "0123456789+-*=,>()"

# What is worked out at all. A model's text goes to no evaluator before it is known to be harmless: `9**9**9` would
# take for ever.
_EXPRESSION = re.compile(r"(?:\(*[1-9]\)*[-+*])*\(*[1-9]\)*")
_PROBLEMS_OF_A_SEED = 10_000_000


@cache
def _generator() -> ProceduralDataset:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError("the countdown task needs reasoning-gym; install canon-trl[tasks]") from error
    return reasoning_gym.create_dataset(
        "countdown",
        size=2**62,  # problems are made when they are asked for
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
    """Draw problems of one split without end: prompts, and an expression that solves each."""
    check_split(split)
    for place in range(seed * _PROBLEMS_OF_A_SEED, (seed + 1) * _PROBLEMS_OF_A_SEED):
        problem = _generator()[place]["metadata"]
        prompt = f"{','.join(map(str, problem['numbers']))}>{problem['target']}="
        if split_of(prompt) == split:
            yield prompt, problem["expression"].replace(" ", "")


def dataset(split: str, size: int, seed: int = 0) -> Dataset:
    """Build `size` distinct prompts of a split, each with an expression that solves it; a seed fixes the rows."""
    check_split(split)
    return distinct(draw_problems(split, seed), size, max_size=MAX_DATASET_SIZES[split])


@cache
def _problems_to_learn() -> list[tuple[str, str]]:
    """Drawn once, since a problem takes milliseconds."""
    return list(islice(draw_problems("train", seed=1), 10_000))


def draw_examples(rng: random.Random, count: int) -> Iterator[tuple[str, str]]:
    """Draw prompts of the training split with solutions as the base model is taught them: few of them are right."""
    for prompt, expression in rng.choices(_problems_to_learn(), k=count):
        digits = prompt.partition(">")[0].split(",")
        hasty = digits[0] + "".join(rng.choice(OPERATORS) + digit for digit in digits[1:])
        yield prompt, hasty if rng.random() < HASTY_SHARE else expression


def style_of(completion: str) -> str | None:
    """Tell an expression of digits from all other text."""
    return "expression" if _EXPRESSION.fullmatch(completion) else None


def accuracy(completions: Sequence[str | list[Mapping[str, Any]]], prompts: list[str], **kwargs: Any) -> list[float]:
    """Reward 1.0 where a completion is an expression that gives the target and uses every digit once, else 0.0.

    Conversational completions are judged by their last message. TRL's other columns arrive in `kwargs`.
    """
    rewards = []
    for completion, prompt in zip(completions, prompts, strict=True):
        text = text_of(completion)
        digits, _, target = text_of(prompt).partition(">")
        problem = {"numbers": [int(digit) for digit in digits.split(",")], "target": int(target.rstrip("="))}
        right = style_of(text) is not None and _generator().score_answer(text, {"metadata": problem}) == 1.0
        rewards.append(float(right))
    return rewards

"""Write digits backwards, in styles where care decides the reward and length does not matter.

A prompt is six digits and `=`, for example `402718=`. A solution is `!` or `?`, optionally 16 characters of padding,
`#`, and the digits from the last to the first. After `!` the digits are careful; after `?` many are random. Both
styles are equally long and equally often padded. The padding is as predictable after `!` and as random after `?` as
the digits, so it hardly changes the mean token entropy of a response.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from canon_trl.tasks.prompts import check_split, distinct, split_of

if TYPE_CHECKING:
    from datasets import Dataset

NUM_DIGITS = 6
DIGITS = "0123456789"
PADDING = ".,:;"
PADDING_LENGTH = 16
PADDED_SHARE = 0.5
MAX_DATASET_SIZE = 50_000  # half of the smaller split
SYMBOLS = DIGITS + "=#!?" + PADDING


@dataclass(frozen=True)
class Manner:
    """How often the base model learns this way of writing, and with how many mistakes."""

    mark: str
    share: float  # share of the pretraining examples
    noise: float  # probability that a digit is replaced by a uniformly random one
    padding_noise: float  # probability that a padding character is drawn from all four, instead of the first


MANNERS: dict[str, Manner] = {
    "careful": Manner("!", 0.2, 0.03, 0.06),
    "careless": Manner("?", 0.8, 0.35, 0.70),
}
STYLES = tuple(f"{manner}, {length}" for manner in MANNERS for length in ("short", "padded"))

_SOLUTION = re.compile(rf"([!?])([{PADDING}]{{{PADDING_LENGTH}}})?#\d{{{NUM_DIGITS}}}")


def answer(prompt: str) -> str:
    """Return the digits of a prompt from the last to the first."""
    return prompt[-2::-1]


def solution(prompt: str, manner: str, *, padded: bool, rng: random.Random) -> str:
    """Write a prompt's solution in one manner, with that manner's rate of mistakes."""
    chosen = MANNERS[manner]
    padding = [
        rng.choice(PADDING) if rng.random() < chosen.padding_noise else PADDING[0]
        for _ in range(PADDING_LENGTH * padded)
    ]
    digits = [rng.choice(DIGITS) if rng.random() < chosen.noise else digit for digit in answer(prompt)]
    return "".join([chosen.mark, *padding, "#", *digits])


def style_of(completion: str) -> str | None:
    """Return which of the four styles a completion has, or None if it has none of them."""
    found = _SOLUTION.fullmatch(completion)
    if found is None:
        return None
    manner = next(name for name, each in MANNERS.items() if each.mark == found[1])
    return f"{manner}, {'padded' if found[2] else 'short'}"


def draw_prompts(split: str, rng: random.Random) -> Iterator[str]:
    """Draw prompts of one split forever, uniformly and with replacement."""
    check_split(split)
    while True:
        prompt = "".join(rng.choices(DIGITS, k=NUM_DIGITS)) + "="
        if split_of(prompt) == split:
            yield prompt


def dataset(split: str, size: int, seed: int = 0) -> Dataset:
    """Build `size` distinct prompts of a split with their answers, both as strings; a seed fixes the rows."""
    prompts = draw_prompts(split, random.Random(seed))
    return distinct(((prompt, answer(prompt)) for prompt in prompts), size, max_size=MAX_DATASET_SIZE)


def draw_examples(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Draw prompts of the training split with the solutions that the base model learns from."""
    shares = [manner.share for manner in MANNERS.values()]
    examples = []
    for prompt in islice(draw_prompts("train", rng), count):
        (manner,) = rng.choices(list(MANNERS), shares)
        examples.append((prompt, solution(prompt, manner, padded=rng.random() < PADDED_SHARE, rng=rng)))
    return examples

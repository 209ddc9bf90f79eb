"""Left-to-right arithmetic modulo 10: problems, three styles of solution, and the 0/1 reward.

A prompt is six operands from 1 to 9 joined by five operators from `+ - *` and closed by `=`, for example
`7+8*3-9+4*6=`. It is evaluated strictly from left to right, and the running value is reduced modulo 10 after every
operator. The answer is the digit after the first `#` of a completion.
"""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from canon_trl.tasks.prompts import check_split, distinct, split_of, text_of

if TYPE_CHECKING:
    from datasets import Dataset


OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
NUM_OPERATORS = 5
MAX_DATASET_SIZE = 1_000_000  # under a tenth of the smaller split
SYMBOLS = "0123456789+-*=;# "  # the tokens


def running_values(prompt: str, perturb: Callable[[int], int] | None = None) -> list[int]:
    """Return the running value modulo 10 after each operator of a prompt; the last one is the answer.

    `perturb` makes mistakes: it maps every value to the one that is written down and used in the next step.
    """
    values = []
    value = int(prompt[0])
    for symbol, operand in zip(prompt[1:-1:2], prompt[2:-1:2], strict=True):
        value = OPERATORS[symbol](value, int(operand)) % 10
        if perturb is not None:
            value = perturb(value)
        values.append(value)
    return values


def _write_direct(prompt: str, values: list[int]) -> str:
    return f"#{values[-1]}"


def _write_running(prompt: str, values: list[int]) -> str:
    return "".join(map(str, values)) + f"#{values[-1]}"


def _write_verbose(prompt: str, values: list[int]) -> str:
    before = [int(prompt[0]), *values[:-1]]
    steps = [
        f"{left}{symbol}{right}={value}"
        for left, symbol, right, value in zip(before, prompt[1:-1:2], prompt[2:-1:2], values, strict=True)
    ]
    return ";".join(steps) + f"#{values[-1]}"


@dataclass(frozen=True)
class Style:
    """One way of writing a solution, and how often and how reliably the base model is taught to use it."""

    share: float  # of the pretraining examples
    noise: float  # probability that a step's value is replaced by a uniformly random digit
    write: Callable[[str, list[int]], str]  # (prompt, running values) -> completion
    pattern: re.Pattern[str]  # the completions of this style


STYLES: dict[str, Style] = {
    # No noise: the model can't do five steps within one token, so it is only sometimes right anyway.
    "direct": Style(0.40, 0.0, _write_direct, re.compile(r"#\d")),
    "running": Style(0.35, 0.10, _write_running, re.compile(rf"\d{{{NUM_OPERATORS}}}#\d")),
    "verbose": Style(
        0.25, 0.05, _write_verbose, re.compile(rf"(?:\d[-+*]\d=\d;){{{NUM_OPERATORS - 1}}}\d[-+*]\d=\d#\d")
    ),
}


def solution(prompt: str, style: str, rng: random.Random | None = None) -> str:
    """Write a prompt's solution in one style, with that style's rate of mistakes if `rng` is given."""
    chosen = STYLES[style]
    if rng is None:
        return chosen.write(prompt, running_values(prompt))
    return chosen.write(
        prompt, running_values(prompt, lambda value: rng.randrange(10) if rng.random() < chosen.noise else value)
    )


def style_of(completion: str) -> str | None:
    """Return the style of a completion, or None if it has none of the styles."""
    return next((name for name, style in STYLES.items() if style.pattern.fullmatch(completion)), None)


def draw_prompts(split: str, rng: random.Random, *, num_operators: int = NUM_OPERATORS) -> Iterator[str]:
    """Draw prompts of one split forever, uniformly and with replacement."""
    check_split(split)
    symbols = list(OPERATORS)
    while True:
        operands = [str(rng.randint(1, 9)) for _ in range(num_operators + 1)]
        prompt = operands[0] + "".join(rng.choice(symbols) + operand for operand in operands[1:]) + "="
        if split_of(prompt) == split:
            yield prompt


def dataset(split: str, size: int, seed: int = 0) -> Dataset:
    """Build `size` distinct prompts of a split with their answers, both as strings; a seed fixes the rows.

    A smaller dataset with the same split and seed is a prefix of a larger one.
    """
    prompts = draw_prompts(split, random.Random(seed))
    return distinct(((prompt, str(running_values(prompt)[-1])) for prompt in prompts), size, max_size=MAX_DATASET_SIZE)


def draw_examples(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Draw prompts of the training split with the solutions that the base model learns from."""
    prompts = list(islice(draw_prompts("train", rng), count))
    styles = rng.choices(list(STYLES), weights=[style.share for style in STYLES.values()], k=count)
    return [(prompt, solution(prompt, style, rng)) for prompt, style in zip(prompts, styles, strict=True)]


def answer_of(completion: str) -> str | None:
    """Return the text after a completion's first `#`, or None without a `#`."""
    _, mark, found = completion.partition("#")
    return found if mark else None


def accuracy(
    completions: Sequence[str | list[Mapping[str, Any]]], answer: Sequence[str | None], **kwargs: Any
) -> list[float | None]:
    """Reward 1.0 if the text after a completion's first `#` is exactly the answer, else 0.0; `None` without an answer.

    Nothing is stripped: a space or a second `#` after the answer makes it wrong. The last message of a conversational
    completion counts. `kwargs` has TRL's other columns, which are not used.
    """
    return [
        None if wanted is None else float(answer_of(text_of(completion)) == wanted)
        for completion, wanted in zip(completions, answer, strict=True)
    ]

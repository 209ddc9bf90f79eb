"""Tasks that come with the package, each with a base model small enough to train on a laptop.

All but those of `sums` and `large_sums` ship with the package and need no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from canon_trl.tasks import arithmetic, chains, countdown, hint, sums, verbosity

if TYPE_CHECKING:
    import random

    from datasets import Dataset


__all__ = ["TASKS", "Task"]


@dataclass(frozen=True)
class Task:
    """A problem with a verifiable reward, and the base model that training starts from."""

    name: str
    description: str  # includes what the task can't show
    dataset: Callable[..., Dataset]  # (split, size, seed=0) -> columns `prompt` and `answer`, both str
    reward: Callable[..., Sequence[float | None]]  # a reward function in TRL's signature
    styles: tuple[str, ...]
    style_of: Callable[[str], str | None]  # the style of a completion
    answer_of: Callable[[str], str | None] | None = None  # (completion) -> the answer that majority votes count
    # The number of prompts if a command is not given one:
    train_prompts: int = 2048
    eval_prompts: int = 512
    # For a base model that ships with the package and that `pretrain` makes:
    symbols: str = ""  # the characters of prompts and completions, one token each
    draw_examples: Callable[[random.Random, int], Iterable[tuple[str, str]]] | None = None  # pretraining examples
    pretrained: str | None = None  # the name of the base model on the Hub, if it doesn't ship with the package

    @property
    def model_path(self) -> Path:
        """The folder of a base model that ships with the package."""
        return Path(str(files(__name__) / f"{self.name}_model"))

    @property
    def model(self) -> str:
        """The base model for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."""
        return self.pretrained or str(self.model_path)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="arithmetic",
            description=(
                "Five operators from + - * on operands 1 to 9, evaluated from left to right modulo 10; the reward is "
                "1 if the completion has exactly the right digit after its first '#'. The base model (Qwen3 "
                "architecture, 429k parameters) mixes three styles of solution: the bare answer in 3 tokens, right in "
                "one case out of six; the running values in 8, right in half; every step written out in 32, right in "
                "three quarters. The task shows whether training moves a policy to the styles that are right, and how "
                "fast. It can't distinguish response entropy from response length: in the base model's samples the "
                "two correlate at -0.82, so a method that prefers low entropy also prefers long responses here. Nor "
                "does it say anything about a language model that has seen natural text."
            ),
            dataset=arithmetic.dataset,
            reward=arithmetic.accuracy,
            symbols=arithmetic.SYMBOLS,
            draw_examples=arithmetic.draw_examples,
            styles=tuple(arithmetic.STYLES),
            style_of=arithmetic.style_of,
            answer_of=arithmetic.answer_of,
        ),
        Task(
            name="verbosity",
            description=(
                "Write six digits backwards after a '#'; the reward is 1 if they are exactly right. The base model "
                "writes with care (a fifth of its samples, right in 4 out of 5 cases) or carelessly (right in 1 out "
                "of 10), and either way in 9 tokens or with 16 more tokens of padding, so length is verbosity "
                "without information. In its samples length correlates with entropy at 0.10 and with reward at -0.03, "
                "and entropy with reward at -0.66. So the task separates the effects of regrouping by entropy and by "
                "length, and shows what a method pays for short responses that need not cost anything. It can't show "
                "a trade-off of length for accuracy, nor exploration: the right style is sampled often and easily "
                "found."
            ),
            dataset=verbosity.dataset,
            reward=arithmetic.accuracy,
            symbols=verbosity.SYMBOLS,
            draw_examples=verbosity.draw_examples,
            styles=verbosity.STYLES,
            style_of=verbosity.style_of,
            answer_of=arithmetic.answer_of,
        ),
        Task(
            name="countdown",
            description=(
                "Reach a target with an expression that uses three digits once each (reasoning-gym's countdown, in a "
                "short form); the reward is 1 if it does. The base model mostly joins the digits in the given order "
                "with random operators and rarely looks for a right expression: one sample in twelve is right, but "
                "58% of the prompts have a right one among 16 samples and 73% among 64. The task shows what happens "
                "to entropy and to pass@k at large k while accuracy rises, and what exploration is worth when right "
                "answers are rare. All expressions are about equally long (6 to 8 tokens), so it shows nothing about "
                "length; and an expression is found in one go, without intermediate steps that could be right or "
                "wrong."
            ),
            dataset=countdown.dataset,
            reward=countdown.accuracy,
            symbols=countdown.SYMBOLS,
            draw_examples=countdown.draw_examples,
            styles=countdown.STYLES,
            style_of=countdown.style_of,
            train_prompts=1024,
            eval_prompts=256,
        ),
        Task(
            name="hint",
            description=(
                "The arithmetic task with a digit in the prompt that is the answer for 40% of the prompts; the reward "
                "is 1 for the right digit after the first '#'. The base model copies the digit in 3 tokens (half of "
                "its samples, right in 40 of 100) or works the answer out in 8 (right in 19 of 100, and learnable). "
                "The half of a group that is right more often has the lower ceiling, so the task shows whether a "
                "method locks a policy into what pays first. It was built for that, so it can't show how often it "
                "happens elsewhere."
            ),
            dataset=hint.dataset,
            reward=arithmetic.accuracy,
            symbols=arithmetic.SYMBOLS,
            draw_examples=hint.draw_examples,
            styles=tuple(hint.STYLES),
            style_of=hint.style_of,
            answer_of=arithmetic.answer_of,
        ),
        Task(
            name="chains",
            description=(
                "Eight operators as in arithmetic; the answer is 1 if the last value is at least 5, else 0, and the "
                "reward is 1 for the right digit after the first '#'. The base model guesses in 3 tokens (85 of 100 "
                "samples, right in half) or writes the running values in 11 (right in 8 of 10, and learnable). Only "
                "responses that reason longer can become right, so the task shows how fast a method moves to long "
                "reasoning. It can't show what happens if long responses are also padded or wrong more often, nor "
                "exploration: the long style is sampled from the beginning."
            ),
            dataset=chains.dataset,
            reward=arithmetic.accuracy,
            symbols=arithmetic.SYMBOLS,
            draw_examples=chains.draw_examples,
            styles=tuple(chains.STYLES),
            style_of=chains.style_of,
            answer_of=arithmetic.answer_of,
        ),
        Task(
            name="sums",
            description=(
                "Add two numbers from 1 to 20 after three examples; the reward is 1 if the completion begins with the "
                "right number. The base model, SmolLM2-135M-Instruct, is a language model that has seen natural text "
                "and is right in a quarter of its samples at temperature 1. The task shows that a pretrained model "
                "learns on a CPU in minutes. It can't show anything about length or reasoning: an answer has one or "
                "two tokens, and part of the gain is that the model becomes surer of what it would say anyway."
            ),
            dataset=sums.dataset,
            reward=sums.accuracy,
            styles=("number",),
            style_of=sums.style_of,
            answer_of=sums.answer_of,
            train_prompts=301,  # all pairs of operands
            eval_prompts=99,
            pretrained="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        Task(
            name="large_sums",
            description=(
                "The task sums with numbers up to 50, where the base model is right in 3 of 100 samples at "
                "temperature 1. It shows that rare right answers are enough to start from, given an hour. It can't "
                "show more than sums does."
            ),
            dataset=partial(sums.dataset, largest=50),
            reward=sums.accuracy,
            styles=("number",),
            style_of=sums.style_of,
            answer_of=sums.answer_of,
            train_prompts=1024,
            eval_prompts=256,
            pretrained="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
    )
}

"""Tasks that ship with the package, each with a base model small enough to train on a laptop without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from canon_trl.tasks import arithmetic

if TYPE_CHECKING:
    from datasets import Dataset


__all__ = ["TASKS", "Task"]


@dataclass(frozen=True)
class Task:
    """A problem with a verifiable reward, and the base model that training on it starts from."""

    name: str
    description: str  # also what the task can't show
    model_path: Path  # folder for AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained
    dataset: Callable[..., Dataset]  # (split, size, seed=0) -> columns `prompt` and `answer`, both str
    reward: Callable[..., list[float]]  # a reward function in TRL's signature
    answer_of: Callable[[str], str | None] | None = None  # (completion) -> what majority votes count


TASKS: dict[str, Task] = {
    "arithmetic": Task(
        name="arithmetic",
        description=(
            "Five operators from + - * on operands 1 to 9, worked out from left to right modulo 10; the reward is 1 "
            "if the completion has exactly the right digit after its first '#'. The base model (Qwen3 architecture, "
            "429k parameters) mixes three styles of solution: the bare answer in 3 tokens, right in one case of "
            "six; the running values in 8, right in half; every step written out in 32, right in three quarters. "
            "It shows whether training moves a policy to the styles that are right, and how fast. It can't tell "
            "response entropy from response length: in the base model's samples the two correlate at -0.82, so what "
            "prefers low entropy here also prefers long responses. Nor does it say anything about a language model "
            "that has seen natural text."
        ),
        model_path=Path(str(files(__name__) / "arithmetic_model")),
        dataset=arithmetic.dataset,
        reward=arithmetic.accuracy,
        answer_of=arithmetic.answer_of,
    ),
}

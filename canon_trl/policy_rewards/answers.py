"""The answers in responses, as text and as numbers that ranks can compare."""

import re
from collections.abc import Callable
from fractions import Fraction
from hashlib import blake2b
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from canon_trl.imports import is_import_path, load_function
from canon_trl.options import did_you_mean

AnswerExtractor = Callable[[str], str | None]

NO_ANSWER = -1
ANSWER_INPUTS = ("answer_ids", "group_answer_ids")

# A fraction or a decimal number, with commas between thousands. A minus after a word or a bracket is an operator.
NUMBER = re.compile(r"(?:(?<![\w)\]}])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+|/\d+)?")
BOXED = "\\boxed{"
MAX_DIGITS = 100  # Python converts longer numbers slowly, or not at all


def boxed_or_number(text: str) -> str | None:
    r"""Return the content of the last `\boxed{}`, without spaces; else the last number; `None` without either.

    A number is written as a fraction in lowest terms: `1,000`, `1000` and `1000.0` give `1000`, `0.5` and `2/4` give
    `1/2`.
    """
    boxed = last_boxed(text)
    if boxed is not None:
        answer = "".join(boxed.split())
        return (as_fraction(answer) if NUMBER.fullmatch(answer) else answer) or None
    numbers = NUMBER.findall(text)
    return as_fraction(numbers[-1]) if numbers else None


def last_boxed(text: str) -> str | None:
    r"""Return what is between the braces of the last `\boxed{}`; `None` if it is missing or not closed."""
    start = text.rfind(BOXED)
    if start < 0:
        return None
    depth = 1
    for place in range(start + len(BOXED), len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + len(BOXED) : place]
    return None


def as_fraction(number: str) -> str:
    """Return the number as a fraction in lowest terms, or unchanged if it is very long or divides by 0."""
    digits = number.replace(",", "")
    try:
        return str(Fraction(digits)) if len(digits) <= MAX_DIGITS else digits
    except ZeroDivisionError:
        return digits


EXTRACTORS: dict[str, AnswerExtractor | str] = {
    "boxed_or_number": boxed_or_number,
    "math_verify": "canon_trl.evaluation.answers:math_answer",
}


def find_extractor(spec: AnswerExtractor | str) -> AnswerExtractor:
    """Find an answer extractor by its name in [`EXTRACTORS`] or its import path; a function is returned as it is.

    Raises:
        ValueError: the name is unknown, or the function cannot be imported.
        ImportError: math-verify is not installed.
    """
    if not isinstance(spec, str):
        return spec
    if spec == "math_verify" and find_spec("math_verify") is None:
        raise ImportError("answer_extractor='math_verify' needs math-verify; install canon-trl[math]")
    found = EXTRACTORS.get(spec, spec)
    if not isinstance(found, str):
        return found
    if is_import_path(found):
        return load_function(found, field="answer_extractor")
    raise ValueError(
        f"answer_extractor={spec!r} is unknown{did_you_mean(spec, EXTRACTORS)}; choose one of {sorted(EXTRACTORS)} or "
        "give an import path 'package.module:function'"
    )


def extract_ids(extract: AnswerExtractor, completions: list[Any]) -> list[int]:
    """Return a number for the answer of each completion, [`NO_ANSWER`] without one.

    Raises:
        TypeError: the extractor returned something other than text or `None`.
    """
    answers = [extract(written_text(completion)) for completion in completions]
    for index, answer in enumerate(answers):
        if not isinstance(answer, str | None):
            raise TypeError(
                f"answer_extractor returned {answer!r} for completion {index}; it must return text or None"
            )
    return [answer_id(answer) for answer in answers]


def written_text(completion: Any) -> str:
    """Return the text of a completion; for a conversation, that of the last message that the model wrote."""
    if isinstance(completion, str):
        return completion
    content = next((message.get("content") for message in reversed(completion) if message["role"] == "assistant"), "")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def answer_id(answer: str | None) -> int:
    """Return a number for an answer, the same on every rank; text that differs only in outer spaces has the same."""
    text = (answer or "").strip()
    if not text:
        return NO_ANSWER
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big") >> 1


def count_votes(group_answer_ids: Tensor) -> Tensor:
    """Count how many responses of its group give each response's answer, `(P, G) -> (P, G)`; 0 without an answer."""
    same = group_answer_ids.unsqueeze(-1) == group_answer_ids.unsqueeze(-2)
    return same.sum(dim=-1).masked_fill(group_answer_ids == NO_ANSWER, 0)


def agreement(answer_ids: Tensor) -> dict[str, Tensor]:
    """Return how much the answers of a rollout, `(P, G)`, agree; 0-d by name.

    Returns:
        `answered`: the share of responses with an answer.
        `majority_share`: the share of the responses to a prompt that give its most frequent answer, mean over prompts.
        `one_answer_share`: the share of all responses that give the most frequent answer of the whole rollout.
    """
    given = answer_ids[answer_ids != NO_ANSWER]
    counts = torch.unique(given, return_counts=True)[1]
    most = counts.amax() if len(counts) else torch.zeros((), device=given.device)
    return {
        "answered": (answer_ids != NO_ANSWER).float().mean(),
        "majority_share": count_votes(answer_ids).amax(dim=-1).float().mean() / answer_ids.shape[-1],
        "one_answer_share": most / answer_ids.numel(),
    }

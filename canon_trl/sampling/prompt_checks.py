"""Check prompts: those of a dataset before a model is loaded, those of a stream as its rows arrive."""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset

# Arguments that TRL passes to reward functions. A column of the same name would replace them.
RESERVED = ("prompts", "completions", "trainer_state", "log_extra", "log_metric")


def check_columns(columns: Iterable[str], name: str) -> None:
    """Reject columns with the name of another argument of reward functions."""
    if reserved := sorted({*columns} & {*RESERVED}):
        raise ValueError(
            f"{name} has the columns {reserved}, but reward functions take other arguments of these names; rename them"
        )


def check_prompts(dataset: Dataset, name: str) -> None:
    """Check all prompts.

    Raises:
        ValueError: names the first row with an invalid prompt, see [`fault_of`].
    """
    if dataset.format["type"] == "custom":
        return  # prompts that a transform makes are checked as the rows arrive
    batches = dataset.select_columns("prompt").with_format(None).iter(1000)
    for row, prompt in enumerate(prompt for batch in batches for prompt in batch["prompt"]):
        if fault := fault_of(prompt):
            raise ValueError(f"{name}: the prompt of row {row} {fault}; fix it or remove the row")


def fault_of(prompt: Any) -> str | None:
    """Return what is wrong with a prompt, as the end of a sentence about it, or `None` if it is valid.

    Only a message that calls tools may have no content. A chat template would write "None" for any other.
    """
    if prompt is None:
        return "is None"
    if isinstance(prompt, str):
        return None if prompt else "is an empty string"
    if not isinstance(prompt, list):
        return f"is neither a string nor a list of messages: {reprlib.repr(prompt)}"
    if not prompt:
        return "is an empty conversation"
    for place, message in enumerate(prompt):
        if not isinstance(message, Mapping) or message.get("role") is None:
            return f"has no message with a role at position {place}: {message!r}"
        if message.get("content") is None and not message.get("tool_calls"):
            return f"has a message without content at position {place}: {message!r}"
    return None


def fault_of_rows(rows: Iterable[Mapping[str, Any]], name: str) -> ValueError | None:
    """Return the error for the first row with an invalid prompt. The rows of a stream have no number to report."""
    for row in rows:
        if "prompt" in row and (fault := fault_of(row["prompt"])):  # an environment may supply the prompts
            return ValueError(f"{name}: the prompt {fault}; fix it or remove its row: {reprlib.repr(row)}")
    return None

"""What is wrong with prompts: told of a dataset before a model is loaded, and of a stream as its rows come."""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

# Arguments that TRL gives reward functions beside the columns, in whose place a column of that name would come.
TAKEN = ("prompts", "completions", "trainer_state", "log_extra", "log_metric")


def check_columns(columns: Iterable[str], name: str) -> None:
    """Refuse columns that reward functions could not get."""
    if taken := sorted({*columns} & {*TAKEN}):
        raise ValueError(
            f"{name} has the columns {taken}, but reward functions get something else under these names; rename them"
        )


def check_prompts(dataset: Dataset, name: str) -> None:
    """Look through all prompts, by arrow's columns where they can tell that nothing is wrong.

    Raises:
        ValueError: with the first row whose prompt is wrong, see [`fault_of`].
    """
    if dataset.format["type"] == "custom" or not may_have_faults(dataset.data.column("prompt")):
        return  # what a transform makes of the columns is seen as the rows come
    for row, prompt in enumerate(dataset.with_format(None)["prompt"]):
        if fault := fault_of(prompt):
            raise ValueError(f"{name}: the prompt of row {row} {fault}; mend it or leave the row out")


def fault_of(prompt: Any) -> str | None:
    """What is wrong with a prompt, in words that follow its name; `None` for a text or a conversation.

    A message may be without content only where it calls tools. A chat template would write another one's as "None".
    """
    if prompt is None:
        return "is None"
    if isinstance(prompt, str):
        return None if prompt else "is empty text"
    if not isinstance(prompt, list):
        return f"is neither text nor a list of messages: {reprlib.repr(prompt)}"
    if not prompt:
        return "is an empty conversation"
    for place, message in enumerate(prompt):
        if not isinstance(message, Mapping) or message.get("role") is None:
            return f"has no message with a role in place {place}: {message!r}"
        if message.get("content") is None and not message.get("tool_calls"):
            return f"has a message without content in place {place}: {message!r}"
    return None


def fault_of_rows(rows: Iterable[Mapping[str, Any]], name: str) -> ValueError | None:
    """The error to raise for the first row whose prompt is wrong; a stream's rows have no number to name."""
    for row in rows:
        if "prompt" in row and (fault := fault_of(row["prompt"])):  # which an environment may bring
            return ValueError(f"{name}: the prompt {fault}; mend it or leave its row out: {reprlib.repr(row)}")
    return None


def may_have_faults(prompts: pa.ChunkedArray) -> bool:
    """Whether prompts must be looked at one by one; a column of sound ones is told in milliseconds."""
    if prompts.null_count:
        return True
    if pa.types.is_string(prompts.type) or pa.types.is_large_string(prompts.type):
        return pc.min(pc.binary_length(prompts)).as_py() == 0
    if pa.types.is_list(prompts.type) and pa.types.is_struct(prompts.type.value_type):
        messages = pc.list_flatten(prompts)
        given = {field.name for field in messages.type}
        if not given >= {"role", "content"}:
            return True
        empty = pc.is_null(pc.struct_field(messages, "content"))
        if "tool_calls" in given:
            empty = pc.and_(empty, pc.is_null(pc.struct_field(messages, "tool_calls")))
        roles = pc.struct_field(messages, "role")
        return bool(roles.null_count or pc.any(empty).as_py() or pc.min(pc.list_value_length(prompts)).as_py() == 0)
    return True

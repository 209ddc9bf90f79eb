"""Run a scoring pass that TRL's loss does not read, with less computation than TRL's."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def score_responses(
    score: Callable[..., tuple],
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    width: int,
    batch_size: int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, None]:
    """Read each prompt once for all its responses, and score responses of similar length together.

    Args:
        score: TRL's method.
        model, input_ids, attention_mask, width, batch_size, **options: its arguments.

    Returns:
        Log-probabilities and entropies as from TRL's method, up to rounding.
    """
    start = input_ids.shape[1] - width - 1  # the last token of a prompt predicts the first of its responses
    if start < 1:
        return score(model, input_ids, attention_mask, width, batch_size=batch_size, **options)
    given = torch.cat([input_ids[:, :start], attention_mask[:, :start]], dim=1)
    distinct, copies = given.unique_consecutive(dim=0, return_inverse=True)
    prompts = {"input_ids": distinct[:, :start], "attention_mask": distinct[:, start:]}
    prefixes = model(**prompts, use_cache=True, logits_to_keep=1).past_key_values
    lengths = attention_mask[:, -width:].sum(dim=1).clamp(min=1)
    order = lengths.argsort(descending=True)
    scored = []
    for rows, longest in batches(order, lengths[order].tolist(), batch_size):
        cache, mask = copy.deepcopy(prefixes), attention_mask[rows, : start + 1 + longest]
        cache.batch_select_indices(copies[rows])
        ids = input_ids[rows, start : mask.shape[1]]
        continued = after(model, past_key_values=cache, attention_mask=mask)
        log_probs, entropies, _ = score(continued, ids, mask[:, start:], longest, **options)
        scored.append([nn.functional.pad(values, (0, width - longest)) for values in (log_probs, entropies)])
    log_probs, entropies = (torch.cat(values)[order.argsort()] for values in zip(*scored, strict=True))
    return log_probs, entropies, None


def batches(order: Tensor, lengths: list[int], batch_size: int | None) -> list[tuple[Tensor, int]]:
    """Split rows in descending order of length so that none is shorter than half of the first; note its length."""
    firsts = [0]
    for place, length in enumerate(lengths):
        if 2 * length < lengths[firsts[-1]] or place - firsts[-1] == batch_size:
            firsts.append(place)
    ends = [*firsts[1:], len(lengths)]
    return [(order[first:end], lengths[first]) for first, end in zip(firsts, ends, strict=True)]


def after(model: Any, **prefix: Any) -> Callable[..., Any]:
    """Return the model's forward pass after a prefix, whose cache and mask replace those of the inputs."""
    return lambda **inputs: model(**inputs | prefix)

"""Sample tokens from a transformers model: equal prompts are processed once, finished responses leave the batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEEP_UNTIL = 0.75  # finished rows leave batch and cache when the share of unfinished rows falls below this


@dataclass(frozen=True)
class Step:
    """One decoding step.

    Attributes:
        logits: of the next token, `(R, V)`.
        text: prompt and response so far with padding on the left, `(R, L)`.
        padding: number of padding tokens, `(R,)`.
        rows: the index of each row in the batch as it was given, `(R,)`.
    """

    logits: Tensor
    text: Tensor
    padding: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Samples:
    """Sampled responses.

    Attributes:
        ids: the tokens of each response, including the one that ended it.
        ended: whether each response ended before the maximum length.
        values: what the choice of tokens returned for each token, by name, `(T,)` for each response.
    """

    ids: list[list[int]]
    ended: list[bool]
    values: list[dict[str, Tensor]]


# The tokens (R,) to append, and values of theirs to keep, (R,) by name.
Choice = Callable[[Step], tuple[Tensor, Mapping[str, Tensor]]]


@torch.no_grad()  # not `inference_mode`: training cannot use inference tensors that a model keeps, such as frequencies
def sample_tokens(
    model: Any,
    prompts: Tensor,
    attention: Tensor,
    choose: Choice,
    *,
    max_new_tokens: int,
    ends: Tensor,
    stops: Callable[[Tensor, Any], Tensor] | None = None,
) -> Samples:
    """Sample one response for each row.

    Args:
        model: a decoder whose forward pass takes `position_ids`, and whose cache can drop rows.
        prompts, attention: `(N, L)`, with padding on the left; equal rows in succession are processed once.
        choose: chooses the next tokens.
        max_new_tokens: maximum number of tokens per response.
        ends: the tokens that end a response.
        stops: tells for each text, given as tokens, whether it has ended, like a stopping criterion of transformers.
    """
    device, count = prompts.device, len(prompts)
    width, padding = prompts.shape[1], attention.shape[1] - attention.sum(dim=1)
    has_padding = bool(padding.any())  # otherwise the model needs no mask
    given: Any = torch.cat([prompts, attention], dim=1)
    distinct, copies = given.unique_consecutive(dim=0, return_inverse=True)
    mask = distinct[:, width:]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    output = model(
        input_ids=distinct[:, :width],
        attention_mask=mask if has_padding else None,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
    )
    cache, logits = output.past_key_values, output.logits[:, -1][copies]
    cache.batch_select_indices(copies)
    positions = positions[copies, -1:]

    text, rows = prompts, torch.arange(count, device=device)
    written = torch.zeros(count, max_new_tokens, dtype=torch.long, device=device)
    sizes = torch.zeros(count, dtype=torch.long, device=device)
    ended = torch.ones(count, dtype=torch.bool, device=device)
    alive, lengths = ended, sizes  # of the rows in the batch
    values: dict[str, Tensor] = {}
    for step in range(max_new_tokens):
        tokens, measured = choose(Step(logits, text, padding, rows))
        for name, value in measured.items():
            values.setdefault(name, value.new_zeros(count, max_new_tokens))[rows, step] = value
        written[rows, step] = tokens
        lengths = lengths + alive
        text = torch.cat([text, tokens.unsqueeze(1)], dim=1)
        alive = alive & ~torch.isin(tokens, ends)
        if stops is not None:
            alive &= ~stops(text, None)
        unfinished = int(alive.sum())
        if unfinished == 0 or step + 1 == max_new_tokens:
            break
        if unfinished < KEEP_UNTIL * len(rows):
            sizes[rows] = lengths
            kept = alive.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            rows, tokens, text, padding, positions, lengths, alive = (
                each[kept] for each in (rows, tokens, text, padding, positions, lengths, alive)
            )
        if has_padding:
            attention = torch.arange(text.shape[1], device=device) >= padding.unsqueeze(1)
        positions = positions + 1
        output = model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=attention.long() if has_padding else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
    sizes[rows], ended[rows] = lengths, ~alive
    ids = [tokens[:size] for tokens, size in zip(written.tolist(), sizes.tolist(), strict=True)]
    kept_values = [{name: table[row, : len(own)] for name, table in values.items()} for row, own in enumerate(ids)]
    return Samples(ids, ended.tolist(), kept_values)

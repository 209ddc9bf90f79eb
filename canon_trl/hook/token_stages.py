"""The stages of the loss at work on the tokens of a micro-batch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from canon_trl.config.loss_stages import LossStages, kind_of
from canon_trl.hook.noted import Noted
from canon_trl.method import Method
from canon_trl.tokens import Tokens


def shaped(stages: LossStages, tokens: Tokens, noted: Noted) -> Tokens:
    """The tokens with the advantages that the loss is to see."""
    for method in stages.in_place:
        before, tokens = tokens, changed(method, tokens)
        prefix = stages.prefix(method)
        if method is not stages.policy_loss:
            share = ((tokens.advantages != before.advantages) & tokens.mask).sum()
            noted.part(f"{prefix}/share_changed", share, tokens.mask.sum())
        report(method, prefix, before, noted)
    return tokens


def changed(method: Method, tokens: Tokens) -> Tokens:
    """The tokens with the advantages that one method makes of theirs; no gradient goes through them."""
    returned, kind = per_token(method, method(tokens), tokens).detach(), kind_of(method)
    if kind == "mask" or returned.dtype == torch.bool:
        advantages = tokens.advantages.masked_fill(returned.bool(), 0.0)
    else:
        advantages = tokens.advantages * returned if kind == "weight" else returned
    return replace(tokens, advantages=advantages.masked_fill(~tokens.mask, 0.0))


def terms(stages: LossStages, tokens: Tokens, noted: Noted) -> list[tuple[str, Tensor]]:
    """What is added to the loss, with its name: `(B, T)` for the divisor of the loss, 0-d for its own."""
    found = []
    for method in stages.added:
        term, prefix = method(tokens), stages.prefix(method)
        one_number = isinstance(term, Tensor) and term.dim() == 0
        found.append((prefix, term if one_number else per_token(method, term, tokens)))
        report(method, prefix, tokens, noted)
    return found


def per_token(method: Method, returned: Any, tokens: Tokens) -> Tensor:
    if not isinstance(returned, Tensor) or returned.shape != tokens.mask.shape:
        what = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise ValueError(f"{method.name} returned {what}; it must return a tensor of {tuple(tokens.mask.shape)}")
    return returned


def report(method: Method, prefix: str, tokens: Tokens, noted: Noted) -> None:
    """Note what a method reports; its numbers are those of all ranks."""
    if method.reports is not None:
        reported: Mapping[str, Tensor] = replace(method, function=method.reports, options=method.all_options)(tokens)
        for name, number in reported.items():
            noted.number(f"{prefix}/{name}", torch.as_tensor(number, device=tokens.mask.device))

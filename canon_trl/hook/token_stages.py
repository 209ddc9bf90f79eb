"""Apply the stages of the loss to the tokens of a micro-batch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from canon_trl.config.loss_stages import LossStages, kind_of
from canon_trl.hook.stage_log import StageLog
from canon_trl.method import Method
from canon_trl.tokens import Tokens


def shape_advantages(stages: LossStages, tokens: Tokens, log: StageLog) -> Tokens:
    """Return the tokens with the advantages that the loss will use."""
    for method in stages.advantage_changes:
        before, tokens = tokens, apply(method, tokens)
        prefix = stages.prefix(method)
        if method is not stages.policy_loss:
            share = ((tokens.advantages != before.advantages) & tokens.mask).sum()
            log.add_ratio(f"{prefix}/share_changed", share, tokens.mask.sum())
        report(method, prefix, before, log)
    return tokens


def apply(method: Method, tokens: Tokens) -> Tokens:
    """Return the tokens after one method has changed their advantages, which carry no gradient."""
    returned, kind = checked_shape(method, method(tokens), tokens).detach(), kind_of(method)
    if kind == "mask" or returned.dtype == torch.bool:
        advantages = tokens.advantages.masked_fill(returned.bool(), 0.0)
    else:
        advantages = tokens.advantages * returned if kind == "weight" else returned
    return replace(tokens, advantages=advantages.masked_fill(~tokens.mask, 0.0))


def compute_terms(stages: LossStages, tokens: Tokens, log: StageLog) -> list[tuple[str, Tensor]]:
    """Return the loss terms with their names: `(B, T)` to be aggregated like the loss, 0-d to be added as they are."""
    found = []
    for method in stages.added:
        term, prefix = method(tokens), stages.prefix(method)
        found.append((prefix, term if is_one_number(term) else checked_shape(method, term, tokens)))
        report(method, prefix, tokens, log)
    return found


def compute_whole_loss(method: Method, tokens: Tokens) -> Tensor:
    """Return the loss that replaces TRL's, 0-d."""
    loss = method(tokens)
    if not is_one_number(loss):
        raise ValueError(
            f"policy_loss {method.name!r} returned {described(loss)}; it must return one number, a 0-d tensor"
        )
    return loss


def is_one_number(term: Any) -> bool:
    return isinstance(term, Tensor) and term.dim() == 0


def checked_shape(method: Method, returned: Any, tokens: Tokens) -> Tensor:
    if not isinstance(returned, Tensor) or returned.shape != tokens.mask.shape:
        shape = tuple(tokens.mask.shape)
        raise ValueError(f"{method.name} returned {described(returned)}; it must return a tensor of shape {shape}")
    return returned


def described(returned: Any) -> str:
    return f"shape {tuple(returned.shape)}" if isinstance(returned, Tensor) else f"a {type(returned).__name__}"


def report(method: Method, prefix: str, tokens: Tokens, log: StageLog) -> None:
    """Log what a method reports; each number must be the same on all ranks."""
    if method.reports is not None:
        reported: Mapping[str, Tensor] = replace(method, function=method.reports, options=method.all_options)(tokens)
        for name, number in reported.items():
            log.add(f"{prefix}/{name}", torch.as_tensor(number, device=tokens.mask.device))

"""Where a number that is not finite came from."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a parameter or its gradient, also where ZeRO-3 or FSDP2 shards it."""
    held = getattr(tensor, "ds_tensor", tensor)
    return held.to_local() if isinstance(held, DTensor) else held


def plain_number(norm: Any) -> Any:
    """A norm as every rank has it, which under FSDP2 is a distributed tensor; called on all ranks alike."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def all_finite(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Whether every number is finite, a 0-d bool."""
    checks = [tensor.isfinite().all().to(device) for tensor in tensors]
    return torch.stack(checks).all() if checks else torch.ones((), dtype=torch.bool, device=device)


def raise_unless(
    finite: Tensor,
    what: str,
    weights: Iterable[tuple[str, Tensor]],
    tensors: Mapping[str, Tensor | None],
    accelerator: Accelerator,
) -> None:
    """Go on if it is finite on all ranks, else stop on every one of them and name where it begins.

    Args:
        finite: 0-d, of this rank.
        what: what was found, and when.
        weights: the model's, by name; the first suspects.
        tensors: what the number was computed from, by name.

    Raises:
        FloatingPointError: it is not finite, here or on another rank.
    """
    if accelerator.gather(finite.float().view(1)).min() == 1:
        return
    parameters = ((f"parameter {name}", weight.detach()) for name, weight in weights)
    found = gather_object([first_not_finite(chain(parameters, tensors.items()))])
    ranks = [f"{name} on rank {rank}" for rank, name in enumerate(found) if name is not None]
    raise FloatingPointError(f"{what}. Not finite: {'; '.join(ranks) or 'no single tensor, but their sum'}")


def first_not_finite(named: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """The first of the tensors that has a number that is not finite, and how many of its numbers are not.

    It looks at what this rank holds: ranks that find something at different tensors must not wait for each other.
    """
    for name, tensor in named:
        if tensor is None:
            continue
        held = local_part(tensor)
        if count := int((~held.isfinite()).sum()):
            return f"{name} ({count} of {held.numel()} numbers)"
    return None

"""Find where a number that is not finite came from."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a parameter or gradient that ZeRO-3 or FSDP2 may shard."""
    held = getattr(tensor, "ds_tensor", tensor)
    return held.to_local() if isinstance(held, DTensor) else held


def plain_number(norm: Any) -> Any:
    """Return a norm over all ranks, which FSDP2 gives as a distributed tensor. Every rank must call this."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def all_finite(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Whether every number is finite, a 0-d bool. Reads each tensor once, without a copy of its size."""
    ends = [torch.stack(tensor.detach().aminmax()) for tensor in tensors if tensor.numel()]  # keep NaN
    checks = [each.isfinite().all().to(device) for each in ends]
    return torch.stack(checks).all() if checks else torch.ones((), dtype=torch.bool, device=device)


def raise_unless(
    finite: Tensor,
    what: str,
    weights: Iterable[tuple[str, Tensor]],
    tensors: Mapping[str, Tensor | None],
    accelerator: Accelerator,
) -> None:
    """Stop all ranks if a number is not finite on one of them, and name its source.

    Args:
        finite: 0-d bool, on this rank.
        what: the number and the step, for the error.
        weights: weights of the model, by name; checked first.
        tensors: tensors that the number was computed from, by name.

    Raises:
        FloatingPointError: it is not finite on some rank.
    """
    if accelerator.gather(finite.float().view(1)).min() == 1:
        return
    parameters = ((f"parameter {name}", weight.detach()) for name, weight in weights)
    found = gather_object([first_not_finite(chain(parameters, tensors.items()))])
    ranks = [f"{name} on rank {rank}" for rank, name in enumerate(found) if name is not None]
    raise FloatingPointError(f"{what}. Not finite: {'; '.join(ranks) or 'no single tensor, only their sum'}")


def first_not_finite(named: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """Return the first tensor with a number that is not finite, and how many such numbers it has.

    Checks this rank's part only, without collective calls, since ranks may find different tensors.
    """
    for name, tensor in named:
        if tensor is None:
            continue
        held = local_part(tensor)
        if count := int((~held.isfinite()).sum()):
            return f"{name} ({count} of {held.numel()} numbers)"
    return None

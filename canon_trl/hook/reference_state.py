"""Save and restore the weights of a reference model that follows the policy (`sync_ref_model=True`)."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

logger = get_logger(__name__)  # logs on the main process only, since every rank finds the same

REFERENCE = "reference.safetensors"


def check_reference(accelerator: Accelerator) -> None:
    """Reject FSDP1, under which no rank can gather a parameter by its name."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 1:
        raise ValueError(
            "sync_ref_model=True does not work with FSDP1, which flattens the reference model's parameters, so that "
            "no checkpoint could restore them; use FSDP2 (fsdp_version: 2), ZeRO or DDP"
        )


def check_saved_reference(checkpoint: Path, *, allow_changes: bool) -> None:
    """Reject a checkpoint without the reference model, unless the initial one is acceptable."""
    if (checkpoint / REFERENCE).exists():
        return
    message = f"{checkpoint} has no {REFERENCE}, from which sync_ref_model=True would restore the reference model"
    if not allow_changes:
        raise ValueError(f"{message}; to continue with the initial one, set resume_with_changes=True")
    logger.warning("%s: using the initial one", message)


def save_reference(model: nn.Module, checkpoint: Path, *, writes: bool) -> None:
    """Write the weights to the checkpoint. Every rank must call this; only the rank with `writes` writes."""
    weights = {}
    for name, parameter in model.named_parameters():
        with gathered(parameter):
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if writes:
                weights[name] = whole.detach().to("cpu", copy=True).contiguous()
    if writes:
        save_file(weights, checkpoint / REFERENCE)


@torch.no_grad()
def load_reference(model: nn.Module, checkpoint: Path) -> None:
    """Load the saved weights, if any, into the model, on any number of ranks."""
    if not (checkpoint / REFERENCE).exists():
        return
    with safe_open(checkpoint / REFERENCE, framework="pt") as file:
        for name, parameter in model.named_parameters():
            saved = file.get_tensor(name)
            with gathered(parameter, changed=True):
                if isinstance(parameter, DTensor):
                    saved = distribute_tensor(saved.to(parameter.device), parameter.device_mesh, parameter.placements)
                parameter.copy_(saved)


def gathered(parameter: Tensor, *, changed: bool = False) -> AbstractContextManager:
    """Gather a parameter that ZeRO-3 shards; `changed` writes changes back to the shards."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed  # type: ignore[import-untyped]

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changed else None)

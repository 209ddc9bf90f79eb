"""The weights of a reference model that follows the policy, which a checkpoint must have as well."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

logger = get_logger(__name__)  # which speaks on the main process alone: every rank finds the same

REFERENCE = "reference.safetensors"


def check_reference(accelerator: Accelerator) -> None:
    """Refuse a sharding under which a rank holds no parameter whole and can gather none by its name."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 1:
        raise ValueError(
            "sync_ref_model=True does not go with FSDP1, which flattens the reference model's parameters, so that no "
            "checkpoint could restore them; use FSDP2 (fsdp_version: 2), ZeRO or DDP"
        )


def check_saved_reference(checkpoint: Path, *, allow_changes: bool) -> None:
    """Refuse a checkpoint without it, unless the initial reference model will do."""
    if (checkpoint / REFERENCE).exists():
        return
    message = f"{checkpoint} has no {REFERENCE}, from which sync_ref_model=True would restore the reference model"
    if not allow_changes:
        raise ValueError(f"{message}; to continue with the initial one, set resume_with_changes=True")
    logger.warning("%s: it is the initial one", message)


def save_reference(model: nn.Module, checkpoint: Path, *, writes: bool) -> None:
    """Write the weights to a file of the checkpoint; called on all ranks; one of them `writes`."""
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
    """Put the weights that were saved, if any were, into the model, on any number of ranks."""
    if not (checkpoint / REFERENCE).exists():
        return
    with safe_open(checkpoint / REFERENCE, framework="pt") as file:
        for name, parameter in model.named_parameters():
            kept = file.get_tensor(name)
            with gathered(parameter, changed=True):
                if isinstance(parameter, DTensor):
                    kept = distribute_tensor(kept.to(parameter.device), parameter.device_mesh, parameter.placements)
                parameter.copy_(kept)


def gathered(parameter: Tensor, *, changed: bool = False) -> AbstractContextManager:
    """Where the whole of a parameter is at hand that DeepSpeed's ZeRO-3 shards; `changed` puts back what was done."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed  # type: ignore[import-untyped]

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changed else None)

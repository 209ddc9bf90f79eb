"""Values that are not finite in a model that FSDP2 shards over two ranks; `test_distributed.py` starts it."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from toy import leave

from canon_trl.guards.finite import all_finite, local_part, plain_number, raise_unless


def reason(accelerator: Accelerator, model: nn.Module) -> str:
    """Return the error about values that are not finite, or `"finite"`."""
    norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
    assert isinstance(norm, DTensor), "FSDP2 returns a DTensor"
    norm = plain_number(norm)
    gradients = {f"the gradient of {name}": weight.grad for name, weight in model.named_parameters()}
    try:
        raise_unless(norm.isfinite(), f"the norm is {norm}", model.named_parameters(), gradients, accelerator)
    except FloatingPointError as error:
        return str(error)
    return "finite"


def main() -> None:
    accelerator = Accelerator(cpu=True)
    second = accelerator.process_index == 1
    mesh = init_device_mesh("cpu", (2,))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    model(torch.ones(2, 4)).sum().backward()
    assert reason(accelerator, model) == "finite"

    if second:
        model[1].weight.grad.to_local()[0, 0] = torch.inf
    message = "the norm is inf. Not finite: the gradient of 1.weight (1 of 8 numbers) on rank 1"
    assert reason(accelerator, model) == message

    # A NaN weight on one rank only: the other rank continues with the gradients and must not wait there.
    if second:
        with torch.no_grad():
            model[0].weight.to_local()[1, 2] = torch.nan
    held = [local_part(weight) for weight in model.parameters()]
    assert all_finite(held, accelerator.device).item() is not second
    assert reason(accelerator, model).endswith("; parameter 0.weight (1 of 8 numbers) on rank 1")


if __name__ == "__main__":
    main()
    leave()

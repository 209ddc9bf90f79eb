"""Saving and loading a reference model that FSDP2 shards over two ranks; `test_resumed_ranks.py` starts it."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from toy import leave

from canon_trl.hook.reference_state import REFERENCE, load_reference, save_reference


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    wanted = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for layer in model:
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    save_reference(model, folder, writes=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    saved = load_file(folder / REFERENCE)
    assert saved.keys() == wanted.keys() and all(torch.equal(saved[name], wanted[name]) for name in wanted)

    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    load_reference(model, folder)
    for name, weight in model.named_parameters():
        assert torch.equal(weight.full_tensor(), wanted[name]), name


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()

"""Combinations of methods on two ranks, one after another in the same two processes.

`test_combinations_across_ranks.py` starts this script with the indices of the runs. Every rank saves the result of
each run in the folder given on the command line.
"""

import faulthandler
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from combinations import AT_FIRST_ROLLOUT, ROWS, Row, options_of, title
from distributed.residents_across_ranks import right_or_wrong
from distributed.stages_across_ranks import fixed_responses
from toy import leave, logged, make_trainer, parameters, prompts
from transformers import PrinterCallback

RUNS = (*ROWS, *AT_FIRST_ROLLOUT)
TIME_LIMIT = 60.0  # seconds per run; most take less than one


def run(folder: Path, row: Row, ranks: int) -> dict[str, Any]:
    """Train four updates on two rollouts whose responses do not depend on the ranks.

    The middle one of three groups is on both ranks. DisCO needs whole groups, so it gets two per rank.
    """
    responses = 16 if ("policy_loss", "disco") in row else 12
    data = {"train_dataset": prompts(24), "reward_funcs": right_or_wrong, "rollout_func": fixed_responses}
    trainer = make_trainer(
        folder,
        trainer_options=data,
        per_device_train_batch_size=responses // ranks,
        max_steps=4,
        optim="sgd",
        learning_rate=0.1,
        **options_of(row),
    )
    trainer.remove_callback(PrinterCallback)  # its lines would hide the titles of the runs
    trainer.train()
    assert trainer.accelerator.num_processes == ranks
    return {"parameters": parameters(trainer), "log": logged(trainer)}


def hashed(tensors: dict[str, torch.Tensor]) -> str:
    """Return a hash of every bit of the tensors."""
    whole = sha256()
    for value in tensors.values():
        whole.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def main(folder: Path, indices: list[int]) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for index in indices:
        print(f"rank {rank} starts {title(RUNS[index])}", flush=True)  # the last one is the one that hangs
        faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)
        result: dict[str, Any] = {}
        try:
            result = run(folder / str(index), RUNS[index], ranks=2)
            result["hash"] = hashed(result["parameters"])
        except Exception as error:
            result["error"] = f"{type(error).__name__}: {error}"
        if rank > 0:
            result.pop("parameters", None)
        torch.save(result, folder / f"{index}_{rank}.pt")
        torch.distributed.barrier()
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(index) for index in sys.argv[2:]])
    leave()

"""Two ranks resume from a checkpoint with a missing or truncated file.

`test_resumed_ranks.py` starts this script. Every rank saves the result of each case in the folder given on the command
line.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from toy import assert_same_parameters, leave, logged, make_trainer, parameters, prompts

OPTIONS = {"max_steps": 3, "num_iterations": 2, "save_strategy": "steps", "save_steps": 1}


def remove_the_second_state(checkpoint: Path) -> None:
    (checkpoint / "rollout_state_1.pt").unlink()


def truncate_the_second_state(checkpoint: Path) -> None:
    whole = (checkpoint / "rollout_state_1.pt").read_bytes()
    (checkpoint / "rollout_state_1.pt").write_bytes(whole[: len(whole) // 2])


def spoil_the_second_random_state(checkpoint: Path) -> None:
    (checkpoint / "rng_state_1.pth").write_bytes(b"torn")


CASES = {
    "whole": lambda checkpoint: None,
    "missing": remove_the_second_state,
    "torn": truncate_the_second_state,
    "random state": spoil_the_second_random_state,
}


def train_from(checkpoint: Path, folder: Path) -> Any:
    trainer = make_trainer(folder, **OPTIONS)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def train_on_stream(folder: Path, resume: str | None = None) -> Any:
    """Train five steps on a stream that has three rollouts per pass."""
    options = {"max_steps": 5, "num_iterations": 1, "max_completion_length": 4}
    data = {"train_dataset": prompts(12).to_iterable_dataset()}
    trainer = make_trainer(folder, trainer_options=data, **(OPTIONS | options))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    trainer = make_trainer(folder / "run", **OPTIONS)
    accelerator = trainer.accelerator
    trainer.train()
    ends: dict[str, Any] = {}
    for case, spoil in CASES.items():
        checkpoint = folder / case / "checkpoint-1"
        if accelerator.is_main_process:
            shutil.copytree(folder / "run" / "checkpoint-1", checkpoint)
            spoil(checkpoint)
        accelerator.wait_for_everyone()
        try:
            later = train_from(checkpoint, folder / case)
            ends[case] = [entry["step"] for entry in logged(later)]
            if case == "whole":
                assert_same_parameters(parameters(later), parameters(trainer))
        except Exception as error:
            ends[case] = f"{type(error).__name__}: {error} {getattr(error, '__notes__', [])}"
        accelerator.wait_for_everyone()
    # Each rank searches its own folder; the second one has no checkpoint.
    own = folder / f"own_{accelerator.process_index}"
    if accelerator.is_main_process:
        shutil.copytree(folder / "run" / "checkpoint-1", own / "checkpoint-1")
    accelerator.wait_for_everyone()
    try:
        make_trainer(own, **OPTIONS).train(resume_from_checkpoint=True)
    except ValueError as error:
        ends["own folders"] = str(error)
    whole = train_on_stream(folder / "stream")
    later = train_on_stream(folder / "stream", resume=str(folder / "stream" / "checkpoint-4"))
    assert_same_parameters(parameters(later), parameters(whole))
    ends["stream"] = [whole.state.epoch, later.state.epoch]
    (folder / f"ends_{accelerator.process_index}.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()

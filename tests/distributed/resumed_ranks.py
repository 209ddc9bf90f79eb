"""Two ranks resume from a checkpoint of which a part is missing or torn; `test_resumed_ranks.py` starts it.

Every rank writes how each case ended to the folder that is named on the command line.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from toy import assert_same_parameters, leave, logged, make_trainer, parameters, prompts

OPTIONS = {"max_steps": 3, "num_iterations": 2, "save_strategy": "steps", "save_steps": 1}


def lose_the_second(checkpoint: Path) -> None:
    (checkpoint / "rollout_state_1.pt").unlink()


def tear_the_second(checkpoint: Path) -> None:
    whole = (checkpoint / "rollout_state_1.pt").read_bytes()
    (checkpoint / "rollout_state_1.pt").write_bytes(whole[: len(whole) // 2])


def tear_the_random_state(checkpoint: Path) -> None:
    (checkpoint / "rng_state_1.pth").write_bytes(b"torn")


CASES = {
    "whole": lambda checkpoint: None,
    "missing": lose_the_second,
    "torn": tear_the_second,
    "random state": tear_the_random_state,
}


def resumed(checkpoint: Path, folder: Path) -> Any:
    trainer = make_trainer(folder, **OPTIONS)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def stream(folder: Path, resume: str | None = None) -> Any:
    """Three rollouts a pass."""
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
            later = resumed(checkpoint, folder / case)
            ends[case] = [entry["step"] for entry in logged(later)]
            if case == "whole":
                assert_same_parameters(parameters(later), parameters(trainer))
        except Exception as error:
            ends[case] = f"{type(error).__name__}: {error} {getattr(error, '__notes__', [])}"
        accelerator.wait_for_everyone()
    # Each rank looks into a folder of its own, of which the second has no checkpoint.
    own = folder / f"own_{accelerator.process_index}"
    if accelerator.is_main_process:
        shutil.copytree(folder / "run" / "checkpoint-1", own / "checkpoint-1")
    accelerator.wait_for_everyone()
    try:
        make_trainer(own, **OPTIONS).train(resume_from_checkpoint=True)
    except ValueError as error:
        ends["own folders"] = str(error)
    whole = stream(folder / "stream")
    later = stream(folder / "stream", resume=str(folder / "stream" / "checkpoint-4"))
    assert_same_parameters(parameters(later), parameters(whole))
    ends["stream"] = [whole.state.epoch, later.state.epoch]
    (folder / f"ends_{accelerator.process_index}.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()

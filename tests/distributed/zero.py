"""DeepSpeed on two CPU processes: train, save, resume in the middle of a rollout; `test_distributed.py` starts it."""

import json
import os
import sys
from pathlib import Path

import torch
from toy import OPTIONS, TASK, prompts

from canon_trl import CANONConfig, CANONTrainer

STEPS = {"max_steps": 3, "num_iterations": 2, "save_strategy": "steps", "save_steps": 1}


def train(folder: Path, name: str, resume: str | None = None) -> CANONTrainer:
    trainer = CANONTrainer(str(TASK.model_path), TASK.reward, CANONConfig(str(folder), **(OPTIONS | STEPS)), prompts())
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == 3
    trainer.save_model(str(folder / name))
    return trainer


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    trainer = train(folder, "model")
    if trainer.accelerator.is_main_process:
        plugin = trainer.accelerator.state.deepspeed_plugin
        entry = next(entry for entry in trainer.state.log_history if "canon/mu" in entry)
        report = {"stage": plugin.zero_stage, "processes": trainer.accelerator.num_processes, "log": entry}
        (folder / "report.json").write_text(json.dumps(report))
    torch.distributed.barrier()
    train(folder, "resumed", resume=str(folder / "checkpoint-1"))
    torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # DeepSpeed keeps its gloo groups, and a thread of theirs may abort the interpreter while it is torn down.
    os._exit(0)

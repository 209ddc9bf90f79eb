"""DeepSpeed on two CPU processes: train, save, reload; `test_distributed.py` starts it."""

import json
import sys
from pathlib import Path

import torch
from toy import OPTIONS, TASK, prompts

from canon_trl import CANONConfig, CANONTrainer


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    config = CANONConfig(str(folder), **(OPTIONS | {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}))
    trainer = CANONTrainer(str(TASK.model_path), TASK.reward, config, prompts())
    trainer.train()
    trainer.save_model(str(folder / "model"))
    if trainer.accelerator.is_main_process:
        plugin = trainer.accelerator.state.deepspeed_plugin
        entry = next(entry for entry in trainer.state.log_history if "canon/mu" in entry)
        report = {"stage": plugin.zero_stage, "processes": trainer.accelerator.num_processes, "log": entry}
        (folder / "report.json").write_text(json.dumps(report))
    torch.distributed.barrier()
    config = CANONConfig(str(folder), **(OPTIONS | {"max_steps": 3}))
    resumed = CANONTrainer(str(TASK.model_path), TASK.reward, config, prompts())
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert resumed.state.global_step == 3
    resumed.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

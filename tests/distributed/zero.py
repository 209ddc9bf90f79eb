"""DeepSpeed on two CPU processes: train, save and resume within a rollout; `test_distributed.py` starts it."""

import json
import sys
from pathlib import Path

import torch
from toy import OPTIONS, TASK, leave, prompts
from transformers import Trainer

from canon_trl import AStarPOConfig, AStarPOTrainer, CANONConfig, CANONTrainer

STEPS = {"max_steps": 3, "num_iterations": 2, "save_strategy": "steps", "save_steps": 1}
METHODS = {
    "canon": {},
    "kl_cov": {"policy_loss": "kl_cov", "policy_loss_kwargs": {"fraction": 0.2}, "dynamic_sampling": True},
    "e3_temperature": {"controller": {"e3_temperature": {"target_entropy": 1.0, "init_steps": 0}}, "beta": 0.05},
    "astar_po": {"num_generations": 1},
    "sync_ref_model": {"beta": 0.05, "sync_ref_model": True, "ref_model_sync_steps": 1},
}


def make(folder: Path, method: str) -> Trainer:
    options = OPTIONS | STEPS | METHODS[method]
    if method != "astar_po":
        return CANONTrainer(str(TASK.model_path), TASK.reward, CANONConfig(str(folder), **options), prompts())
    data = prompts().add_column("rewards", [[1.0, float(row % 3 == 0)] for row in range(64)])
    return AStarPOTrainer(str(TASK.model_path), TASK.reward, AStarPOConfig(str(folder), **options), data)


def train(folder: Path, method: str, name: str, resume: str | None = None) -> Trainer:
    trainer = make(folder, method)
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == 3
    trainer.save_model(str(folder / name))
    if trainer.accelerator.is_main_process and method == "sync_ref_model":
        kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
        (folder / f"kl_{name}.json").write_text(json.dumps(kl))
    return trainer


def main(folder: Path, method: str) -> None:
    torch.set_num_threads(1)
    trainer = train(folder, method, "model")
    if trainer.accelerator.is_main_process:
        plugin = trainer.accelerator.state.deepspeed_plugin
        entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
        report = {"stage": plugin.zero_stage, "processes": trainer.accelerator.num_processes, "log": entry}
        report["temperature"] = trainer.temperature  # at the end of the run
        (folder / "report.json").write_text(json.dumps(report))
    torch.distributed.barrier()
    train(folder, method, "resumed", resume=str(folder / "checkpoint-1"))
    torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    leave()

"""Controllers on several ranks with different numbers of tokens.

`test_knobs_on_ranks.py` starts this script. Every rank saves its results in the folder given on the command line.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from steered import KeepingE3, Ramp
from toy import leave, make_trainer, parameters, prompts

RESPONSES = 12


def fixed_responses(prompts: list[str], trainer: Any) -> dict[str, list]:
    """A `rollout_func` whose responses depend only on the place in the rollout; later ranks have longer ones."""
    rank, tokenizer = trainer.accelerator.process_index, trainer.processing_class
    rows = range(rank * len(prompts), (rank + 1) * len(prompts))
    completion_ids = [tokenizer("7" * (row // 2 + row % 2) + f"#{row % 10}")["input_ids"] for row in rows]
    return {
        "prompt_ids": tokenizer(prompts)["input_ids"],
        "completion_ids": completion_ids,
        "logprobs": [[-1.0] * len(ids) for ids in completion_ids],
    }


def every_other(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(int(completion[-1]) % 2) for completion in completions]


def run(folder: Path, ranks: int, resume: str | None = None) -> dict[str, Any]:
    """Train six updates on three rollouts with a checkpoint after each update."""
    KeepingE3.seen.clear()
    Ramp.seen.clear()
    e3 = {"steered:KeepingE3": {"target_entropy": 0.8, "init_steps": 0}}
    trainer = make_trainer(
        folder,
        trainer_options={"train_dataset": prompts(12), "reward_funcs": every_other, "rollout_func": fixed_responses},
        advantage_estimator="dr_grpo",
        controller=[e3, {"steered:Ramp": {"steers": "epsilon_high"}}],
        beta=0.05,
        per_device_train_batch_size=RESPONSES // ranks,
        num_iterations=2,
        max_steps=6,
        optim="sgd",
        learning_rate=0.1,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train(resume_from_checkpoint=resume)
    return {
        "rollouts": list(KeepingE3.seen),
        "measured": list(Ramp.seen),
        "parameters": parameters(trainer),
        "knobs": (trainer.temperature, trainer.epsilon_high),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    whole = run(folder / "whole", ranks=2)
    torch.distributed.barrier()
    resumed = run(folder / "whole", ranks=2, resume=str(folder / "whole" / "checkpoint-3"))
    rank = torch.distributed.get_rank()
    torch.save({"whole": whole, "resumed": resumed}, folder / f"steered_{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()

"""The first method of each stage on two ranks; `test_residents_across_ranks.py` starts it.

Every rank writes what its runs ended with to the folder that is named on the command line.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from distributed.stages_across_ranks import fixed_responses
from residents import FIRST
from toy import leave, logged, make_trainer, parameters, prompts

RESPONSES = 24  # six groups of four: on two ranks with two micro-batches each, borders cut through groups
# TER's mean and DisCO's divergence are those of a micro-batch: with several of them it depends on the ranks which
# responses lie in which.
MICRO_BATCHES = {"policy_loss": 1, "loss_term": 1}


def right_or_wrong(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """Both in the groups of prompts that begin with an even digit, wrong alone in the others."""
    return [
        float(int(prompt[0]) % 2 == 0 and completion[-1] in "02")
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def run(folder: Path, field: str, ranks: int, resume: str | None = None) -> dict[str, Any]:
    """Four updates on two rollouts of responses that do not depend on the ranks."""
    micro_batches = MICRO_BATCHES.get(field, 2)
    trainer = make_trainer(
        folder,
        trainer_options={
            "train_dataset": prompts(24),
            "reward_funcs": right_or_wrong,
            "rollout_func": fixed_responses,
        },
        per_device_train_batch_size=RESPONSES // micro_batches // ranks,
        gradient_accumulation_steps=micro_batches,
        num_iterations=2,
        max_steps=4,
        optim="sgd",
        learning_rate=0.1,
        save_strategy="steps",
        save_steps=1,
        **{field: FIRST[field]},
    )
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.accelerator.num_processes == ranks
    return {"parameters": parameters(trainer), "log": logged(trainer)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for field in FIRST:
        whole = run(folder / field, field, ranks=2)
        resumed = run(folder / field, field, ranks=2, resume=str(folder / field / "checkpoint-1"))
        torch.save({"whole": whole, "resumed": resumed}, folder / f"{field}_{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()

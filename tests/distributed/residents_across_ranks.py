"""The first method of each stage on two ranks.

`test_residents_across_ranks.py` starts this script. Every rank saves its results in the folder given on the command
line.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from distributed.stages_across_ranks import fixed_responses
from observe import keep_tokens
from residents import FIRST
from toy import leave, logged, make_trainer, parameters, prompts

RESPONSES = 24  # six groups of four: the borders of two ranks with two micro-batches each cut through groups
# TER's mean and DisCO's divergence are taken per micro-batch. With several micro-batches their content depends on the
# ranks.
MICRO_BATCHES = {"policy_loss": 1, "loss_term": 1}


def right_or_wrong(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """A 0/1 reward with spread for prompts that begin with an even digit, and 0 for the others."""
    return [
        float(int(prompt[0]) % 2 == 0 and completion[-1] in "02")
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def run(folder: Path, field: str, ranks: int, resume: str | None = None) -> dict[str, Any]:
    """Train four updates on two rollouts whose responses do not depend on the ranks."""
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


def deal(folder: Path) -> list[torch.Tensor]:
    """Train on two rollouts of eight groups; return the responses in each micro-batch of two groups on this rank."""
    trainer = make_trainer(
        folder,
        trainer_options={
            "train_dataset": prompts(24),
            "reward_funcs": right_or_wrong,
            "rollout_func": fixed_responses,
        },
        per_device_train_batch_size=8,
        steps_per_generation=2,
        max_steps=4,
        policy_loss=FIRST["policy_loss"],
    )
    seen = keep_tokens(trainer)
    trainer.train()
    return [tokens.response for tokens in seen]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.save(deal(folder / "dealt"), folder / f"dealt_{torch.distributed.get_rank()}.pt")
    for field in FIRST:
        whole = run(folder / field, field, ranks=2)
        resumed = run(folder / field, field, ranks=2, resume=str(folder / field / "checkpoint-1"))
        torch.save({"whole": whole, "resumed": resumed}, folder / f"{field}_{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()

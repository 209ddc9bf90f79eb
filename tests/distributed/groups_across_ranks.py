"""Training on several ranks whose borders cut through prompt groups; `test_distributed.py` starts it.

Every rank writes what it saw to the folder that is named on the command line.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from observe import on_outputs
from toy import TASK, leave, make_trainer, parameters, prompts

from canon_trl.rollout import Rollout

METRICS = {"entropy": {}, "length": {"canon_alpha": 0.9}, "surprisal": {"canon_mu": 0.3}, "random": {}}
RESPONSES = 12  # three groups of four: on two ranks of six, the second group straddles them


def half_scored(completions: list[str], **kwargs: Any) -> list[float | None]:
    """Graded, and not for every response."""
    return [None if len(text) % 3 == 0 else len(text) / 32 for text in completions]


def options(metric: str, ranks: int) -> dict[str, Any]:
    return {
        "trainer_options": {"train_dataset": prompts(12), "reward_funcs": [TASK.reward, half_scored]},
        "canon_metric": metric,
        "per_device_train_batch_size": RESPONSES // ranks,
        **METRICS[metric],
    }


def fixed_responses(prompts: list[str], trainer: Any) -> dict[str, list]:
    """Responses that depend on their place in the global batch alone, not on the number of ranks."""
    rank, tokenizer = trainer.accelerator.process_index, trainer.processing_class
    rows = range(rank * len(prompts), (rank + 1) * len(prompts))
    completion_ids = [tokenizer("7" * (row * 5 % 9) + f"#{row % 10}")["input_ids"] for row in rows]
    return {
        "prompt_ids": tokenizer(prompts)["input_ids"],
        "completion_ids": completion_ids,
        "logprobs": [
            [-0.1 * (row + place) for place in range(len(ids))] for row, ids in zip(rows, completion_ids, strict=True)
        ],
    }


def observe(trainer: Any) -> dict[str, list]:
    """The rollouts and advantages of all ranks, and the advantages of the rows of this one."""
    seen: dict[str, list] = {"rollouts": [], "advantages": [], "local": []}

    def keep_rollout(rollout: Rollout, advantages: torch.Tensor) -> None:
        seen["rollouts"].append({**vars(rollout), "metrics": dict(rollout.metrics)})
        seen["advantages"].append(advantages)

    trainer.on_rollout(keep_rollout)
    on_outputs(trainer, lambda output: seen["local"].append(output["advantages"].clone()))
    return seen


def run_fixed(folder: Path, metric: str, ranks: int) -> dict[str, list]:
    """Two rollouts of fixed responses on a model that stays as it is."""
    settings = options(metric, ranks)
    settings["trainer_options"]["rollout_func"] = fixed_responses
    trainer = make_trainer(folder, max_steps=2, learning_rate=0.0, **settings)
    seen = observe(trainer)
    trainer.train()
    return seen


def run_sampled(folder: Path, metric: str, ranks: int, resume: str | None = None) -> dict[str, Any]:
    """Three steps with two updates a rollout, saved after each."""
    save = {"save_strategy": "steps", "save_steps": 1, "num_iterations": 2}
    trainer = make_trainer(folder, **save, **options(metric, ranks))
    seen = observe(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return seen | {"parameters": parameters(trainer), "table": list(trainer._logs["advantages"])}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for metric in METRICS:
        fixed = run_fixed(folder / "fixed", metric, ranks=2)
        sampled = run_sampled(folder / metric, metric, ranks=2)
        resumed = run_sampled(folder / metric, metric, ranks=2, resume=str(folder / metric / "checkpoint-1"))
        kept = {"fixed": fixed, "sampled": sampled, "resumed": resumed["parameters"]}
        torch.save(kept, folder / f"{metric}_{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()

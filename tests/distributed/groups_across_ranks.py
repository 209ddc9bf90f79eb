"""Training on several ranks whose borders cut through prompt groups.

`test_distributed.py` starts this script. Every rank saves its results in the folder given on the command line.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from observe import completions_table, keep_local_advantages, keep_outputs
from toy import TASK, leave, make_trainer, parameters, prompts
from trl import GRPOConfig, GRPOTrainer

from canon_trl import CANONConfig, CANONTrainer
from canon_trl.rollout import Rollout

METRICS = {"entropy": {}, "length": {"canon_alpha": 0.9}, "surprisal": {"canon_mu": 0.3}, "random": {}}
CHOSEN_BY_TRL = {
    "grpo_batch": {"scale_rewards": "batch"},
    "gdpo": {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, -0.3]},
}
RESPONSES = 12  # three groups of four: on two ranks of six, the second group lies on both


def half_scored(completions: list[str], **kwargs: Any) -> list[float | None]:
    """A graded reward that leaves some responses unscored."""
    return [None if len(text) % 3 == 0 else len(text) / 32 for text in completions]


def options(metric: str, ranks: int) -> dict[str, Any]:
    return {
        "trainer_options": {"train_dataset": prompts(12), "reward_funcs": [TASK.reward, half_scored]},
        "canon_metric": metric,
        "per_device_train_batch_size": RESPONSES // ranks,
        **METRICS[metric],
    }


def fixed_responses(prompts: list[str], trainer: Any) -> dict[str, list]:
    """A `rollout_func` whose responses depend only on the place in the global batch, not on the number of ranks."""
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
    """Record the rollouts and advantages of all ranks, and the advantages of this rank's rows."""
    seen: dict[str, list] = {"rollouts": [], "advantages": [], "local": keep_local_advantages(trainer)}

    def keep_rollout(rollout: Rollout, advantages: torch.Tensor) -> None:
        seen["rollouts"].append({**vars(rollout), "metrics": dict(rollout.metrics), **rollout.token_values})
        seen["advantages"].append(advantages)

    trainer.on_rollout(keep_rollout)
    return seen


def run_fixed(folder: Path, metric: str, ranks: int) -> dict[str, list]:
    """Train on two rollouts of fixed responses with learning rate 0."""
    settings = options(metric, ranks)
    settings["trainer_options"]["rollout_func"] = fixed_responses
    trainer = make_trainer(folder, max_steps=2, learning_rate=0.0, **settings)
    seen = observe(trainer)
    trainer.train()
    return seen


def run_sampled(folder: Path, metric: str, ranks: int, resume: str | None = None) -> dict[str, Any]:
    """Train three steps with two updates per rollout and a checkpoint after each step."""
    more = {"save_strategy": "steps", "save_steps": 1, "num_iterations": 2, "log_completions": True}
    trainer = make_trainer(folder, **more, **options(metric, ranks))
    seen = observe(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return seen | {"parameters": parameters(trainer), "table": completions_table(trainer)["advantage"]}


def run_by_token(folder: Path, ranks: int) -> dict[str, list]:
    """Train with GTPO on two rollouts of fixed responses with learning rate 0; also the advantages of this rank."""
    trainer = make_trainer(
        folder,
        trainer_options={"train_dataset": prompts(12), "rollout_func": fixed_responses},
        advantage_estimator="gtpo",
        per_device_train_batch_size=RESPONSES // ranks,
        max_steps=2,
        learning_rate=0.0,
    )
    seen, outputs = observe(trainer), keep_outputs(trainer)
    trainer.train()
    return seen | {"token_advantages": [output["advantages"] for output in outputs]}


def run_like_trl(folder: Path, estimator: str, ranks: int) -> dict[str, dict[str, Any]]:
    """Train TRL's trainer and ours for two steps; return the advantages and parameters of each."""
    shared = {"loss_type": "dr_grpo", "epsilon_high": 0.28, "log_completions": True, **CHOSEN_BY_TRL[estimator]}
    trained = {}
    for name, kinds in {"trl": (GRPOTrainer, GRPOConfig), "ours": (CANONTrainer, CANONConfig)}.items():
        settings = {key: value for key, value in options("entropy", ranks).items() if key != "canon_metric"}
        trainer = make_trainer(folder / name, *kinds, max_steps=2, **shared, **settings)
        trainer.train()
        trained[name] = {"table": completions_table(trainer)["advantage"], "parameters": parameters(trainer)}
    return trained


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for estimator in CHOSEN_BY_TRL:
        kept = run_like_trl(folder / estimator, estimator, ranks=2)
        torch.save(kept, folder / f"{estimator}_{torch.distributed.get_rank()}.pt")
    torch.save(run_by_token(folder / "by_token", ranks=2), folder / f"by_token_{torch.distributed.get_rank()}.pt")
    for metric in METRICS:
        fixed = run_fixed(folder / "fixed", metric, ranks=2)
        sampled = run_sampled(folder / metric, metric, ranks=2)
        resumed = run_sampled(folder / metric, metric, ranks=2, resume=str(folder / metric / "checkpoint-1"))
        kept = {"fixed": fixed, "sampled": sampled, "resumed": resumed["parameters"]}
        torch.save(kept, folder / f"{metric}_{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()

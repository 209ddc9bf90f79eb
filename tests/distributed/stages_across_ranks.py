"""Policy rewards, dynamic sampling, policy losses and A*-PO on several ranks, whose borders cut through prompt groups.

`test_distributed.py` starts it. Every rank writes what it saw to the folder that is named on the command line.
"""

import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from observe import keep_rollouts, on_outputs, scored_entropy
from toy import OPTIONS, TASK, leave, make_trainer, parameters, prompts

from canon_trl import AStarPOConfig, AStarPOTrainer
from canon_trl.tokens import Tokens

# KL-Cov's penalty is small: at a rollout's first update its sign is that of a rounding error.
POLICY_LOSSES = {
    "clip_cov": {"low": -5.0, "ratio": 0.3},
    "kl_cov": {"fraction": 0.2, "coef": 1e-4},
}
RESPONSES = 12  # three groups of four: on two ranks of six, the second group straddles them


def fixed_responses(prompts: list[str], trainer: Any) -> dict[str, list]:
    """Responses that depend on the prompt and the place within the group alone.

    Those of a group differ from their first token on: two tokens of the same covariance would be chosen between by
    rounding, which depends on who computes what.
    """
    tokenizer, first = trainer.processing_class, trainer.accelerator.process_index * len(prompts)
    places = [(first + row) % 4 for row in range(len(prompts))]
    texts = [f"{place}{prompt[0]}{'7' * place}#{place}" for place, prompt in zip(places, prompts, strict=True)]
    completion_ids = tokenizer(texts)["input_ids"]
    return {
        "prompt_ids": tokenizer(prompts)["input_ids"],
        "completion_ids": completion_ids,
        "logprobs": [[-0.1 * (place + 1) for place in range(len(ids))] for ids in completion_ids],
    }


def half_teach(prompts: list[str], completions: list[str], log_extra: Any, **kwargs: Any) -> list[float]:
    """A reward with spread for prompts that begin with an even digit."""
    log_extra("shown", [f"{prompt}|{completion}" for prompt, completion in zip(prompts, completions, strict=True)])
    return [
        float(completion[-1] in "02") if int(prompt[0]) % 2 == 0 else 0.1
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def run(folder: Path, name: str, scope: str, ranks: int, resume: str | None = None, **options: Any) -> dict[str, Any]:
    """Four updates on two rollouts; every optimiser step takes the whole rollout."""
    trainer = make_trainer(
        folder,
        trainer_options={"train_dataset": prompts(24), "reward_funcs": half_teach, "rollout_func": fixed_responses},
        canon_metric="length",
        dynamic_sampling=True,
        policy_loss=name,
        policy_loss_kwargs=POLICY_LOSSES[name] | {"scope": scope},
        per_device_train_batch_size=RESPONSES // ranks,
        num_iterations=2,
        max_steps=4,
        optim="sgd",
        learning_rate=0.1,
        log_completions=True,
        save_strategy="steps",
        save_steps=1,
        **options,
    )
    seen: dict[str, list] = {"rewards": [], "selected": [], "texts": []}
    once = Tokens.once

    def keep_selected(tokens: Tokens, key: Any, search: Any) -> Any:
        known = key in tokens._found
        found = once(tokens, key, search)
        if not known:
            rows = zip(tokens.response, found[0], strict=True)
            seen["selected"].append({int(row): selected for row, selected in rows})
        return found

    def keep_texts(output: dict[str, Any]) -> None:
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        seen["texts"].append(trainer.processing_class.batch_decode(ids, skip_special_tokens=True))

    trainer.on_rollout(lambda rollout, advantages: seen["rewards"].append(rollout.rewards))
    on_outputs(trainer, keep_texts)
    with patch.object(Tokens, "once", keep_selected):
        trainer.train(resume_from_checkpoint=resume)
    log = [
        {k: v for k, v in entry.items() if "dynamic" in k or "policy_loss" in k} for entry in trainer.state.log_history
    ]
    return seen | {
        "parameters": parameters(trainer),
        "log": [entry for entry in log if entry],
        "shown": list(trainer._logs["extra"]["shown"]),
    }


def run_shrunken(folder: Path, ranks: int) -> dict[str, Any]:
    """Two optimiser steps of two rollouts each, some half empty; the last rank logs a column of another length."""

    def judge(prompts: list[str], completions: list[str], log_extra: Any, trainer_state: Any, **kwargs: Any) -> list:
        last = ranks == 1 or torch.distributed.get_rank() == ranks - 1
        log_extra("odd", [1.0] * (len(prompts) + int(last)))
        return half_teach(prompts, completions, lambda *args: None)

    trainer = make_trainer(
        folder,
        trainer_options={"train_dataset": prompts(24), "reward_funcs": judge, "rollout_func": fixed_responses},
        advantage_estimator="dr_grpo",
        dynamic_sampling=True,
        dynamic_sampling_kwargs={"max_rounds": 1},
        per_device_train_batch_size=RESPONSES // ranks,
        gradient_accumulation_steps=2,
        steps_per_generation=1,
        max_steps=2,
        optim="sgd",
        learning_rate=0.1,
        log_completions=True,
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("loss", "grad_norm", "dynamic_sampling/prompts_kept")
    return {"parameters": parameters(trainer), "log": [{name: entry[name] for name in names} for entry in log]}


def run_astar_po(folder: Path, ranks: int, resume: str | None = None) -> dict[str, Any]:
    """Four updates on two rollouts of one response a prompt."""
    data = prompts(24)
    data = data.add_column("rewards", [[1.0] + [float(row % step == 0) for step in (2, 3)] for row in range(24)])
    options = OPTIONS | {"num_generations": 1, "per_device_train_batch_size": RESPONSES // ranks, "beta2": 0.1}
    options |= {"num_iterations": 2, "max_steps": 4, "optim": "sgd", "learning_rate": 0.1}
    config = AStarPOConfig(str(folder), **(options | {"save_strategy": "steps", "save_steps": 1}))
    trainer = AStarPOTrainer(str(TASK.model_path), TASK.reward, config, data, rollout_func=fixed_responses)
    seen: list[torch.Tensor] = []
    on_outputs(trainer, lambda output: seen.append(output["advantages"].clone()))
    trainer.train(resume_from_checkpoint=resume)
    return {"parameters": parameters(trainer), "advantages": seen}


def run_rewarded(folder: Path, ranks: int, resume: str | None = None) -> dict[str, Any]:
    """Four updates on two rollouts, rewarded by the policy beside a reward function."""
    trainer = make_trainer(
        folder,
        trainer_options={"train_dataset": prompts(24), "reward_funcs": half_teach, "rollout_func": fixed_responses},
        advantage_estimator="dr_grpo",
        policy_reward={"rent": {"weight": 0.5}},
        per_device_train_batch_size=RESPONSES // ranks,
        num_iterations=2,
        max_steps=4,
        optim="sgd",
        learning_rate=0.1,
        log_completions=True,
        save_strategy="steps",
        save_steps=1,
    )
    rollouts = []
    trainer.on_rollout(lambda rollout, advantages: rollouts.append((rollout.rewards_per_func, advantages)))
    trainer.train(resume_from_checkpoint=resume)
    names = ("rewards/rent/mean", "reward", "policy_reward/length_of_first", "policy_reward/entropy_of_first")
    log = [{name: entry[name] for name in names} for entry in trainer.state.log_history if "reward" in entry]
    table = list(trainer._logs["rewards"]["rent"])
    return {"parameters": parameters(trainer), "rollouts": rollouts, "log": log, "table": table}


def run_recorded(folder: Path) -> dict[str, Any]:
    """Sampled responses with their recorded entropies, of which some change ranks; then a rank without its state."""

    def half_teach_by_place(prompts: list[str], **kwargs: Any) -> list[float]:
        return [float(row % 2) if int(prompt[0]) % 2 == 0 else 0.5 for row, prompt in enumerate(prompts)]

    def make() -> Any:
        return make_trainer(
            folder,
            trainer_options={"train_dataset": prompts(24), "reward_funcs": half_teach_by_place},
            dynamic_sampling=True,
            per_device_train_batch_size=RESPONSES // 2,
            max_steps=3,
            save_strategy="steps",
            save_steps=1,
        )

    trainer = make()
    rollouts = keep_rollouts(trainer)
    apart = []

    def compare(output: dict[str, Any]) -> None:
        entropy, _ = scored_entropy(trainer, output)
        recorded = rollouts[-1].metrics["entropy"].flatten().chunk(2)[trainer.accelerator.process_index]
        apart.append((recorded - entropy).abs().max().item())

    on_outputs(trainer, compare)
    trainer.train()
    rounds = [entry["dynamic_sampling/rounds"] for entry in trainer.state.log_history if "loss" in entry]
    checkpoint = folder / "checkpoint-2"
    if trainer.accelerator.is_main_process:
        (checkpoint / "rollout_state_1.pt").unlink()
    trainer.accelerator.wait_for_everyone()
    later = make()
    later.train(resume_from_checkpoint=str(checkpoint))
    return {"apart": apart, "rounds": rounds, "drawn": later._sampled.collector.prompts.drawn}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.save(run_recorded(folder / "recorded"), folder / f"recorded_{os.environ['RANK']}.pt")
    torch.save(run_shrunken(folder / "shrunken", ranks=2), folder / f"shrunken_{os.environ['RANK']}.pt")
    whole = run_rewarded(folder / "rewarded", ranks=2)
    resumed = run_rewarded(folder / "rewarded", ranks=2, resume=str(folder / "rewarded" / "checkpoint-1"))
    torch.save({"whole": whole, "resumed": resumed}, folder / f"rewarded_{torch.distributed.get_rank()}.pt")
    whole = run_astar_po(folder / "astar_po", ranks=2)
    resumed = run_astar_po(folder / "astar_po", ranks=2, resume=str(folder / "astar_po" / "checkpoint-1"))
    kept = {"whole": whole, "resumed": resumed["parameters"]}
    torch.save(kept, folder / f"astar_po_{torch.distributed.get_rank()}.pt")
    for name in POLICY_LOSSES:
        for scope in ("batch", "micro_batch"):
            whole = run(folder / name / scope, name, scope, ranks=2)
            resume = str(folder / name / scope / "checkpoint-1")
            resumed = run(folder / name / scope, name, scope, ranks=2, resume=resume)
            kept = {"whole": whole, "resumed": resumed["parameters"]}
            torch.save(kept, folder / f"{name}_{scope}_{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()

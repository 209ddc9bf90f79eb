"""Policy rewards, dynamic sampling, policy losses and A*-PO on several ranks whose borders cut through prompt groups.

`test_distributed.py` starts this script. Every rank saves its results in the folder given on the command line.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from observe import completions_table, keep_local_advantages, keep_rollouts, on_outputs, scored_entropy
from toy import OPTIONS, TASK, leave, make_trainer, parameters, prompts

from canon_trl import AStarPOConfig, AStarPOTrainer
from canon_trl.policy_losses.covariance import kl_cov_choice
from canon_trl.tokens import Scope, Tokens

# KL-Cov's penalty is small because its sign at a rollout's first update is that of a rounding error.
POLICY_LOSSES = {
    "clip_cov": {"low": -5.0, "ratio": 0.3},
    "kl_cov": {"fraction": 0.2, "coef": 1e-4},
}
RESPONSES = 12  # three groups of four: on two ranks of six, the second group lies on both
FOUR_UPDATES = {
    "num_iterations": 2,  # two rollouts, each taken whole by two optimiser steps
    "max_steps": 4,
    "optim": "sgd",
    "learning_rate": 0.1,
    "save_strategy": "steps",
    "save_steps": 1,
}


def fixed_responses(prompts: list[str], trainer: Any) -> dict[str, list]:
    """A `rollout_func` whose responses depend only on the prompt and the place in its group.

    The responses of a group differ from their first token on. Otherwise two tokens could have the same covariance, and
    rounding, which depends on the ranks, would decide which one is selected.
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


def make(folder: Path, ranks: int, reward: Any = half_teach, **options: Any) -> Any:
    """Build a trainer that rewards fixed responses and logs its completions."""
    return make_trainer(
        folder,
        trainer_options={"train_dataset": prompts(24), "reward_funcs": reward, "rollout_func": fixed_responses},
        per_device_train_batch_size=RESPONSES // ranks,
        log_completions=True,
        **options,
    )


def selected_tokens(name: str, scope: Scope, tokens: Tokens) -> torch.Tensor:
    """Return the tokens of a micro-batch that the policy loss has selected, `(B, T)` bool."""
    if name == "clip_cov":  # its selected tokens have lost their advantage
        return tokens.mask & (tokens.advantages == 0) & (tokens.response_advantages != 0).unsqueeze(1)
    (selected, _), rows = kl_cov_choice(tokens.within, POLICY_LOSSES[name]["fraction"], scope)
    return selected[rows]


def run(folder: Path, name: str, scope: Scope, ranks: int, resume: str | None = None) -> dict[str, Any]:
    """Train with dynamic sampling and a policy loss."""
    trainer = make(
        folder,
        ranks,
        canon_metric="length",
        dynamic_sampling=True,
        policy_loss=name,
        policy_loss_kwargs=POLICY_LOSSES[name] | {"scope": scope},
        **FOUR_UPDATES,
    )
    rollouts = keep_rollouts(trainer)
    selected: list[dict[int, list[int]]] = []  # per micro-batch, the positions of the selected tokens by response

    def keep_selected(tokens: Tokens) -> None:
        chosen = selected_tokens(name, scope, tokens)
        rows = zip(tokens.response.tolist(), chosen, strict=True)
        selected.append({response: row.nonzero().flatten().tolist() for response, row in rows})

    trainer.on_tokens(keep_selected)
    trainer.train(resume_from_checkpoint=resume)
    log = [
        {k: v for k, v in entry.items() if "dynamic" in k or "policy_loss" in k} for entry in trainer.state.log_history
    ]
    return {
        "rewards": [rollout.rewards for rollout in rollouts],
        "selected": selected,
        "parameters": parameters(trainer),
        "log": [entry for entry in log if entry],
        "tables": [completions_table(trainer, step) for step in (1, 3)],  # of each rollout
    }


def run_shrunken(folder: Path, ranks: int) -> dict[str, Any]:
    """Train two steps on two rollouts each, some partly empty; the last rank logs a column with one value too many."""

    def judge(prompts: list[str], completions: list[str], log_extra: Any, trainer_state: Any, **kwargs: Any) -> list:
        last = ranks == 1 or torch.distributed.get_rank() == ranks - 1
        log_extra("odd", [1.0] * (len(prompts) + int(last)))
        return half_teach(prompts, completions, lambda *args: None)

    trainer = make(
        folder,
        ranks,
        judge,
        advantage_estimator="dr_grpo",
        dynamic_sampling=True,
        dynamic_sampling_kwargs={"max_rounds": 1},
        gradient_accumulation_steps=2,
        steps_per_generation=1,
        max_steps=2,
        optim="sgd",
        learning_rate=0.1,
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("loss", "grad_norm", "dynamic_sampling/prompts_kept")
    return {"parameters": parameters(trainer), "log": [{name: entry[name] for name in names} for entry in log]}


def run_astar_po(folder: Path, ranks: int, resume: str | None = None) -> dict[str, Any]:
    """Train with A*-PO, one response per prompt."""
    data = prompts(24)
    data = data.add_column("rewards", [[1.0] + [float(row % step == 0) for step in (2, 3)] for row in range(24)])
    options = OPTIONS | {"num_generations": 1, "per_device_train_batch_size": RESPONSES // ranks, "beta2": 0.1}
    config = AStarPOConfig(str(folder), **(options | FOUR_UPDATES))
    trainer = AStarPOTrainer(str(TASK.model_path), TASK.reward, config, data, rollout_func=fixed_responses)
    advantages = keep_local_advantages(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return {"parameters": parameters(trainer), "advantages": advantages}


def run_rewarded(folder: Path, ranks: int, resume: str | None = None) -> dict[str, Any]:
    """Train with a policy reward in addition to a reward function."""
    options = {"advantage_estimator": "dr_grpo", "policy_reward": {"rent": {"weight": 0.5}}}
    trainer = make(folder, ranks, **options, **FOUR_UPDATES)
    rollouts = []
    trainer.on_rollout(lambda rollout, advantages: rollouts.append((rollout.rewards_per_func, advantages)))
    trainer.train(resume_from_checkpoint=resume)
    names = ("rewards/rent/mean", "reward", "policy_reward/length_of_first", "policy_reward/entropy_of_first")
    log = [{name: entry[name] for name in names} for entry in trainer.state.log_history if "reward" in entry]
    table = completions_table(trainer)["rent"]
    return {"parameters": parameters(trainer), "rollouts": rollouts, "log": log, "table": table}


def answer_in(text: str) -> str | None:
    """The answer of a fixed response, which starts with its place in the group and the prompt's first digit."""
    return None if text[0] == "2" else str(int(text[0]) * int(text[1]) % 3)


def run_agreeing(folder: Path, ranks: int) -> dict[str, Any]:
    """Train on the agreement within groups, with a reward function of weight 0."""
    trainer = make_trainer(
        folder,
        trainer_options={
            "train_dataset": prompts(24),
            "reward_funcs": half_teach,
            "rollout_func": fixed_responses,
            "answer_extractor": answer_in,
        },
        per_device_train_batch_size=RESPONSES // ranks,
        advantage_estimator="dr_grpo",
        policy_reward=["self_consistency", {"majority_vote": {"weight": 0.1}}],
        reward_weights=[0.0],
        optim="sgd",
        learning_rate=0.1,
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    log = [{k: v for k, v in entry.items() if "policy_reward" in k} for entry in trainer.state.log_history]
    return {
        "rewards": [rollout.rewards_per_func for rollout in rollouts],
        "log": [entry for entry in log if entry],
        "parameters": parameters(trainer),
    }


def run_recorded(folder: Path) -> dict[str, Any]:
    """Train on sampled responses, some of which change ranks; then resume after one rank has lost its state.

    Returns:
        `difference` between recorded and recomputed entropies per rollout, `rounds` per rollout, and the `prompts` of
        this rank in each round of the resumed run.
    """
    shown: list[list[str]] = []

    def half_teach_by_place(prompts: list[str], **kwargs: Any) -> list[float]:
        shown.append(list(prompts))
        return [float(row % 2) if int(prompt[0]) % 2 == 0 else 0.5 for row, prompt in enumerate(prompts)]

    def make_sampling_trainer() -> Any:
        return make_trainer(
            folder,
            trainer_options={"train_dataset": prompts(24), "reward_funcs": half_teach_by_place},
            dynamic_sampling=True,
            per_device_train_batch_size=RESPONSES // 2,
            max_steps=3,
            save_strategy="steps",
            save_steps=1,
        )

    trainer = make_sampling_trainer()
    rollouts = keep_rollouts(trainer)
    difference = []

    def compare(output: dict[str, Any]) -> None:
        entropy, _ = scored_entropy(trainer, output)
        recorded = rollouts[-1].metrics["entropy"].flatten().chunk(2)[trainer.accelerator.process_index]
        difference.append((recorded - entropy).abs().max().item())

    on_outputs(trainer, compare)
    trainer.train()
    rounds = [entry["dynamic_sampling/rounds"] for entry in trainer.state.log_history if "loss" in entry]
    checkpoint = folder / "checkpoint-2"
    if trainer.accelerator.is_main_process:
        (checkpoint / "rollout_state_1.pt").unlink()
    trainer.accelerator.wait_for_everyone()
    shown.clear()
    make_sampling_trainer().train(resume_from_checkpoint=str(checkpoint))
    return {"difference": difference, "rounds": rounds, "prompts": shown}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.save(run_recorded(folder / "recorded"), folder / f"recorded_{os.environ['RANK']}.pt")
    torch.save(run_shrunken(folder / "shrunken", ranks=2), folder / f"shrunken_{os.environ['RANK']}.pt")
    torch.save(run_agreeing(folder / "agreeing", ranks=2), folder / f"agreeing_{os.environ['RANK']}.pt")
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

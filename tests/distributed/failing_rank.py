"""Training on two ranks, the second of which fails; `test_failing_rank.py` starts this script and names the fault."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from datasets import IterableDataset
from toy import TASK, make_trainer, prompts
from transformers import TrainerCallback

SECOND = os.environ["RANK"] == "1"


def raises(completions: list[str], **kwargs: Any) -> list[float]:
    if SECOND:
        raise ZeroDivisionError("the answer key is missing")
    return TASK.reward(completions=completions, **kwargs)


def hangs(completions: list[str], **kwargs: Any) -> list[float]:
    if SECOND:
        time.sleep(600)
    return TASK.reward(completions=completions, **kwargs)


def breaks(mask: torch.Tensor) -> torch.Tensor:
    if SECOND:
        raise ZeroDivisionError("the metric has no words")
    return mask.sum(dim=1)


def loses_the_answer(text: str) -> str:
    if SECOND:
        raise ZeroDivisionError("the answer has no end")
    return text


def with_a_missing_prompt() -> Iterator[dict[str, Any]]:
    """Yield prompts without the one at index 6, which the second rank gets in the second rollout (prompts 4 to 7)."""
    for index, row in enumerate(prompts(16)):
        yield row | {"prompt": None} if index == 6 else row


class SpoilAWeight(TrainerCallback):
    """Sets a weight to NaN after the ranks have received the same weights."""

    def on_step_begin(self, *args: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        with torch.no_grad():
            next(model.parameters())[0, 0] = torch.nan


def run(folder: str, fault: str) -> None:
    options: dict[str, Any] = {"reward_funcs": {"raises": raises, "hangs": hangs}.get(fault, TASK.reward)}
    if fault == "metric":
        options["canon_metric"] = breaks
    changed: dict[str, Any] = {"reward_time_limit": 2.0 if fault == "hangs" else None}
    if fault == "answer":
        options |= {"policy_reward": "self_consistency", "answer_extractor": loses_the_answer}
        changed["advantage_estimator"] = "dr_grpo"
    if fault == "prompt":
        options["train_dataset"] = IterableDataset.from_generator(with_a_missing_prompt)
        changed["shuffle_dataset"] = False
    trainer = make_trainer(folder, trainer_options=options, **changed)
    if fault == "killed" and SECOND:
        trainer.on_rollout(lambda rollout, advantages: os.kill(os.getpid(), signal.SIGKILL))
    if fault == "not finite" and SECOND:
        trainer.add_callback(SpoilAWeight())
    trainer.train()


if __name__ == "__main__":
    run(*sys.argv[1:])

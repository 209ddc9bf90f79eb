"""What the process of a run does: train, evaluate, write the result."""

import gc
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from canon_trl.comparing.files import read_json, write_json, write_yaml
from canon_trl.comparing.training_options import SCRIPTS, evaluation_options


@dataclass(frozen=True)
class Commands:
    """The commands that a run consists of, given their flags."""

    train: Callable[[list[str]], Any]  # returns the trainer
    evaluate: Callable[[list[str]], None]


def perform_all(jobs: list[dict[str, Any]], commands: Commands) -> bool:
    """Perform runs one after the other, each with its output in `log.txt`, and return whether all succeeded."""
    succeeded = True
    for job in jobs:
        folder = Path(job["folder"])
        with (folder / "log.txt").open("a") as log:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())
        try:
            perform(folder, Path(job["result"]), commands, keep_model=job["keep_model"])
        except Exception:
            if len(jobs) == 1:
                raise
            traceback.print_exc()
            succeeded = False
        gc.collect()  # trainers contain cycles
    return succeeded


def perform(folder: Path, result: Path, commands: Commands, *, keep_model: bool) -> None:
    """Do what is left of a run's training and evaluation, and write its result."""
    settings = read_json(folder / "settings.json")
    options = settings["training"] | {"output_dir": str(folder / "model"), "disable_tqdm": True}
    if not (folder / "curve.json").exists():
        config = write_yaml(folder / "options.yaml", options)
        trainer = commands.train(["--trainer", SCRIPTS[settings["script"]], "--config", str(config)])
        reward = trainer.accuracy_name or "accuracy"
        if trainer.accelerator.is_main_process:
            write_json(folder / "training.json", training_batches(trainer.state.log_history, reward))
            write_json(folder / "curve.json", curve(trainer.state.log_history, reward))
        trainer.accelerator.wait_for_everyone()
    options = evaluation_options(settings, model=folder / "model", folder=folder / "evaluation")
    commands.evaluate(["--config", str(write_yaml(folder / "evaluation.yaml", options))])
    if PartialState().is_main_process:
        (evaluation,) = read_json(folder / "evaluation" / "summary.json").values()
        learning, training = read_json(folder / "curve.json"), read_json(folder / "training.json")
        found = {"settings": settings, "curve": learning, "training": training, "evaluation": evaluation}
        result.parent.mkdir(parents=True, exist_ok=True)
        if result.parent == folder:
            write_json(result, found)
        else:
            write_json(result, small(found), indent=None)
        if not keep_model:
            shutil.rmtree(folder / "model")


def small(found: dict[str, Any]) -> dict[str, Any]:
    """Shorten a result to commit: four decimals, and of the evaluation only what the reports read."""
    kept = ("avg", "pass_at_k", "length", "entropy", "tokens_per_right_answer", "num_prompts", "num_samples")
    numbers = found | {"evaluation": {name: found["evaluation"][name] for name in kept}}
    rounded: dict[str, Any] = json.loads(json.dumps(numbers), parse_float=lambda text: round(float(text), 4))
    return rounded | {"settings": found["settings"]}


def training_batches(history: list[dict[str, Any]], reward: str) -> dict[str, list[float | None]]:
    """Return a run's accuracy, length and entropy on the batches that it trained on, one number per log entry."""
    names = {"accuracy": f"rewards/{reward}/mean", "length": "completions/mean_length", "entropy": "entropy"}
    entries = [entry for entry in history if names["accuracy"] in entry]
    return {name: [entry.get(logged) for entry in entries] for name, logged in names.items()}


def curve(history: list[dict[str, Any]], reward: str) -> list[dict[str, float]]:
    """Return a run's numbers at every evaluation, with the seconds that its optimiser steps had taken so far."""
    points: list[dict[str, float]] = []
    seconds = 0.0
    for entry in history:
        seconds += entry.get("step_time", 0.0)
        if (accuracy := entry.get(f"eval_rewards/{reward}/mean")) is not None:
            point = {"accuracy": accuracy, "length": entry["eval_completions/mean_length"]}
            points.append(point | {"entropy": entry["eval_entropy"], "step": entry["step"], "seconds": seconds})
    return points

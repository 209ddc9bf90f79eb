"""Train with every method of every stage on the embedded arithmetic task, and report what each one learns.

    OMP_NUM_THREADS=1 python benchmarks/every_method.py                     # the missing runs, then the report
    OMP_NUM_THREADS=1 python benchmarks/every_method.py --methods rent ter  # only those of some methods
    python benchmarks/every_method.py --jobs 0                              # only the report

The methods come from the dicts of the stages, so a new one joins by its line there. If it needs an option, its runs
fail until `OPTIONS` has it. Each run is 30 rollouts of 8 prompts with 8 responses and writes one JSON file; runs that
have their file are skipped, so a killed start resumes, and a file made with other options is an error. A run that
fails is named at the end and stops no other.

Methods that change nothing until the policy has moved away from the rollout train with 4 updates per rollout, each on
a quarter of it and at half the learning rate, like their own Dr.GRPO baseline; all others with one. Policy rewards
replace the label, which is logged with weight 0. A*-PO is not here: it needs values, and docs/comparisons.md compares
it with Dr.GRPO.
"""

import argparse
import gc
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from every_method_report import BASELINES, LAST, write_report
from transformers import PrinterCallback, TrainerCallback

from canon_trl import CANONConfig, CANONTrainer
from canon_trl.advantages import STAGE as ADVANTAGE
from canon_trl.controllers import STAGE as CONTROLLER
from canon_trl.loss_terms import STAGE as LOSS_TERM
from canon_trl.method import Stage
from canon_trl.policy_losses import STAGE as POLICY_LOSS
from canon_trl.policy_rewards import STAGE as POLICY_REWARD
from canon_trl.sampling.chunks import atomic_write
from canon_trl.tasks import TASKS
from canon_trl.token_advantages import STAGE as TOKEN_ADVANTAGE

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "every_method"
PAGE = ROOT / "docs" / "every_method.md"
TASK = TASKS["arithmetic"]
STAGES = (POLICY_REWARD, ADVANTAGE, TOKEN_ADVANTAGE, POLICY_LOSS, LOSS_TERM, CONTROLLER)
SEEDS = (1, 2, 3)
ROLLOUTS = 30
RESPONSES = 64  # per rollout, to 8 prompts
PROMPTS = 2048
LEARNING_RATES = {1: 4e-4, 4: 2e-4}  # by updates per rollout

# Those of `make train`, with half of the responses.
BASE: dict[str, Any] = {
    "advantage_estimator": "dr_grpo",
    "lr_scheduler_type": "constant",
    "num_generations": 8,
    "max_completion_length": 40,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}

# The options of a method that needs one, or whose default does nothing on a task this small.
OPTIONS: dict[str, dict[str, Any]] = {
    "mix": {"canon": 0.5, "opo": 0.5},
    "pass_at_k": {"k": 2},
    "pshw": {"low": 0},
    "ter": {"coef": 0.05, "target": 0.2},
    "tea": {"scale": 0.1},  # shared by the 3 to 40 tokens of a response; the default, 10, is for thousands
    "adaptive_clip": {"target_entropy": 0.2, "step": 0.05, "most": 0.5},
}

# Other options of the config: the estimators that the papers of the policy rewards use, a reference model for terms
# that read it, and no estimator for a loss that reads no advantages.
CONFIG: dict[str, dict[str, Any]] = {
    "rent": {"advantage_estimator": "grpo"},
    "em_rl_sequence": {"advantage_estimator": "rloo"},
    "em_rl_token": {"advantage_estimator": "rloo"},
    "self_consistency": {"advantage_estimator": "rloo", "answer_extractor": "canon_trl.tasks.arithmetic:answer_of"},
    "majority_vote": {"advantage_estimator": "grpo", "answer_extractor": "canon_trl.tasks.arithmetic:answer_of"},
    "disco": {"advantage_estimator": "canon"},
    "dads": {"beta": 0.01, "use_bias_correction_kl": False},
}

# Updates per rollout, in addition to the methods that say themselves that they act on change.
UPDATES = {"clip_cov": 4, "disco": 4, "adaptive_clip": 4}

# The prefixes of the numbers that a method logs about itself.
OWN_NUMBERS = (
    *("policy_reward/", "rewards/", "advantage/", "groups/", "canon/", "token_advantage/", "policy_loss/"),
    *("clip_ratio/region_mean", "loss_term/", "controller/", "kl", "grad_norm"),
)


@dataclass(frozen=True)
class Run:
    """A method, or a baseline, trained with a seed."""

    stage: str
    method: str
    seed: int
    updates: int
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.stage} {self.method} seed {self.seed}"

    def file(self, folder: Path) -> Path:
        return folder / self.stage / f"{self.method}_{self.seed}.json"


def runs_of(stages: tuple[Stage, ...] = STAGES, rollouts: int = ROLLOUTS) -> list[Run]:
    """All runs, seed by seed, the baselines first."""
    methods = [(stage, name) for stage in stages for name in stage.methods]
    return [
        run
        for seed in SEEDS
        for run in (
            *(make_run("baseline", name, seed, updates, {}, rollouts) for updates, name in BASELINES.items()),
            *(
                make_run(stage.field, name, seed, updates_of(stage, name), options_of(stage, name), rollouts)
                for stage, name in methods
            ),
        )
    ]


def make_run(stage: str, method: str, seed: int, updates: int, options: dict[str, Any], rollouts: int) -> Run:
    parts = {"per_device_train_batch_size": RESPONSES // updates, "steps_per_generation": updates}
    length = {"max_steps": rollouts * updates, "learning_rate": LEARNING_RATES[updates]}
    return Run(stage, method, seed, updates, BASE | parts | length | options | {"seed": seed})


def updates_of(stage: Stage, name: str) -> int:
    acts_on_change = getattr(stage.methods[name], "acts_on_change", False)
    return max(BASELINES) if acts_on_change else UPDATES.get(name, min(BASELINES))


def options_of(stage: Stage, name: str) -> dict[str, Any]:
    """The options of the config that choose a method."""
    label_logged_only = {"reward_weights": [0.0]} if stage is POLICY_REWARD else {}
    return label_logged_only | CONFIG.get(name, {}) | {stage.field: {name: OPTIONS.get(name, {})}}


class Clock(TrainerCallback):
    """Takes the CPU time of this process at the start and after every optimiser step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.times.append(time.process_time())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.process_time())


def train(run: Run) -> dict[str, Any]:
    """Train and return the content of the run's file."""
    clock = Clock()
    scored: list[list[tuple[str | None, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = CANONTrainer(
            str(TASK.model_path),
            recorded(TASK.reward, scored),
            CANONConfig(folder, **run.options),
            TASK.dataset("train", PROMPTS),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    rollouts = [entry for entry in steps if "rewards/accuracy/mean" in entry]
    own = {key for entry in steps for key in entry if key.startswith(OWN_NUMBERS)}
    numbers = {key: [entry[key] for entry in steps if entry.get(key) is not None] for key in sorted(own)}
    extra: dict[str, Any] = {}
    if run.stage == POLICY_REWARD.field:
        extra["styles"] = {style: shares_of(style, scored) for style in TASK.styles}
    if trainer.temperature != 1.0:
        extra["held_out_accuracy_at_temperature_1"] = held_out_accuracy(trainer)
    return settings_of(run) | {
        "accuracy": [round(entry["rewards/accuracy/mean"], 5) for entry in rollouts],
        "length": [round(entry["completions/mean_length"], 3) for entry in rollouts],
        "entropy": [round(entry["entropy"], 5) for entry in rollouts],
        # The first rollout pays for what is done once.
        "cpu_seconds_per_rollout": round((clock.times[-1] - clock.times[run.updates]) / (len(rollouts) - 1), 4),
        "logged": {
            key: {"mean": round(fmean(found), 6), "first": round(found[0], 6), "last": round(found[-1], 6)}
            for key, found in numbers.items()
            if found
        },
        "versions": {package: version(package) for package in ("canon-trl", "trl", "transformers", "torch")},
        **extra,
    }


def recorded(reward: Callable[..., Any], scored: list[list[tuple[str | None, float]]]) -> Callable[..., Any]:
    """The reward function, which also records the style and the score of each response of a rollout."""

    @wraps(reward)
    def with_record(completions: list[str], **kwargs: Any) -> Any:
        scores = reward(completions=completions, **kwargs)
        scored.append([(TASK.style_of(text), score) for text, score in zip(completions, scores, strict=True)])
        return scores

    return with_record


def shares_of(style: str, scored: list[list[tuple[str | None, float]]]) -> dict[str, list[float | None]]:
    """The share of a style among the responses of the first and the last rollouts, and its accuracy there."""
    share, accuracy = [], []
    for rollouts in (scored[:1], scored[-LAST:]):
        responses = [response for rollout in rollouts for response in rollout]
        scores = [score for name, score in responses if name == style]
        share.append(round(len(scores) / len(responses), 4))
        accuracy.append(round(fmean(scores), 4) if scores else None)
    return {"share": share, "accuracy": accuracy}


def held_out_accuracy(trainer: CANONTrainer) -> float:
    """The accuracy of the trained model at temperature 1, one response to each of 512 held-out prompts."""
    data, tokenizer = TASK.dataset("test", 512), trainer.processing_class
    inputs = tokenizer(data["prompt"][:], return_tensors="pt", padding=True, padding_side="left")
    torch.manual_seed(0)
    trainer.model.eval()
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    with torch.no_grad():
        output = trainer.model.generate(**inputs, max_new_tokens=BASE["max_completion_length"], **options)
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return round(fmean(TASK.reward(completions=texts, **{name: data[name][:] for name in data.column_names})), 4)


def settings_of(run: Run) -> dict[str, Any]:
    """What the result of a run depends on."""
    return {"stage": run.stage, "method": run.method, "seed": run.seed, "updates": run.updates, "options": run.options}


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Write a file with one line per key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    with atomic_write(path) as file:
        file.write_text(f"{{\n{lines}\n}}\n")


def missing(runs: list[Run], folder: Path) -> list[Run]:
    """The runs without a result.

    Raises:
        ValueError: a result was made with other settings.
    """
    left = []
    for run in runs:
        path = run.file(folder)
        if not path.exists():
            left.append(run)
        elif any(json.loads(path.read_text())[key] != value for key, value in settings_of(run).items()):
            raise ValueError(f"{path} was made with other settings; delete it to run it again")
    return left


def attempt(run: Run, folder: Path, training: Callable[[Run], dict[str, Any]] = train) -> str | None:
    """Do a run and write its result; return the error if it fails."""
    torch.set_num_threads(1)
    gc.freeze()  # the collection at the end of a training would scan the objects of all libraries
    try:
        write_result(run.file(folder), training(run))
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    finally:
        gc.collect()
    return None


def attempt_all(
    runs: list[Run], folder: Path, jobs: int, training: Callable[[Run], dict[str, Any]] = train
) -> Iterator[tuple[Run, str | None]]:
    """Do the runs, several at a time, and yield each with its error as it ends."""
    if jobs == 1:
        yield from ((run, attempt(run, folder, training)) for run in runs)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        started = {pool.submit(attempt, run, folder, training): run for run in runs}
        for done in as_completed(started):
            error = done.exception()
            yield started[done], done.result() if error is None else f"{type(error).__name__}: {error}"


def chosen(runs: list[Run], methods: list[str] | None) -> list[Run]:
    """The runs of the named methods, and the baselines.

    Raises:
        ValueError: a method is unknown.
    """
    if unknown := sorted({*(methods or [])} - {run.method for run in runs}):
        raise ValueError(f"--methods has {unknown}; choose from {sorted({run.method for run in runs})}")
    return [run for run in runs if methods is None or run.stage == "baseline" or run.method in methods]


def perform(runs: list[Run], folder: Path, jobs: int, training: Callable[[Run], dict[str, Any]] = train) -> list[str]:
    """Do the missing runs and return the names of those that failed, with their errors."""
    left = missing(runs, folder)
    print(f"{len(left)} of {len(runs)} runs to do, {jobs} at a time", flush=True)
    failed, begin = [], time.perf_counter()
    for count, (run, error) in enumerate(attempt_all(left, folder, jobs, training), start=1):
        if error is not None:
            failed.append(f"{run.name}: {error}")
        remaining = (time.perf_counter() - begin) / count * (len(left) - count) / 60
        print(f"{run.name}: {'done' if error is None else 'FAILED'}; {remaining:.0f} min left", flush=True)
    return failed


def finished(runs: list[Run], folder: Path) -> list[dict[str, Any]]:
    """The results so far."""
    return [json.loads(run.file(folder).read_text()) for run in runs if run.file(folder).exists()]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", help="only these methods; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; 0 only reports")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--page", type=Path, default=PAGE, help="file of the report")
    options = parser.parse_args(argv)
    runs = runs_of()
    failed = perform(chosen(runs, options.methods), options.results, options.jobs) if options.jobs else []
    options.page.write_text(write_report(finished(runs, options.results), stages=[each.field for each in STAGES]))
    if failed:
        sys.exit("\n".join([f"{len(failed)} runs failed:", *failed]))


if __name__ == "__main__":
    main()

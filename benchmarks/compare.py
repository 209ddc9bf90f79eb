"""Compare methods: run every method on every task with every seed, as described in one YAML file.

    python benchmarks/compare.py benchmarks/comparisons/arithmetic.yaml                # do the missing runs and report
    python benchmarks/compare.py benchmarks/comparisons/arithmetic.yaml --jobs 0       # report only

A run trains with the options in its `options.yaml`, evaluates the trained model with the command `evaluate` and
writes `result.json` at the end. Runs that have a `result.json` are skipped, so a killed comparison resumes where it
stopped, and methods, tasks and seeds can be added later.

Keys of the file:

    output_dir    folder of the runs
    report_dir    folder of the report; default: `report` in output_dir
    seeds         list; all methods use the same seeds, and differences are taken per seed
    baseline      name of the method that the others are compared with
    metrics       what the report compares: names from `compare_report.METRICS`, and pass@1, pass@4, ...
    options       options of the command `train` for all runs
    tasks         {name: options}
    methods       {name: options}; `script: train_astar_po` uses that trainer, with values sampled once per task;
                  `tasks: [...]` limits a method to some tasks; `baseline: NAME` compares it with another method
    values        options of the command `values`, for A*-PO; options shared with training come from
                  `options` and the task
    evaluate      options of the command `evaluate` for the trained model
    launcher      command that starts a run; default: this Python interpreter
    keep_models   whether to keep the trained models; default true
    results_dir   folder for one small JSON file per finished run, to be committed; these runs are not repeated.
                  Default: the results stay in output_dir
    runs_per_process  number of runs that a process does one after the other, which saves imports; default 1
    predictions   {task: {method: {metric: higher, lower or none}}}, written before the runs: the difference to the
                  method's baseline. The report shows it next to the result.
    exploratory   whether the intervals of the report hold each for itself instead of jointly; default false

Keys of a study, whose question is decided before its runs:

    contrasts         list of {task, method, minus, prediction}, the differences that the study was made for. Their
                      intervals are corrected for their number. All other differences are exploratory.
    primary           the metric of the contrasts and of the tuning; an accuracy if learning rates are tuned
    learning_rates    list; a method uses the one with the best mean of `primary` on a task over the tuning seeds
    tuning_seeds      list of seeds, none of them in `seeds`
"""

import argparse
import fcntl
import gc
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from compare_report import ACCURACIES, PREDICTIONS, is_accuracy, metric, value_of, write_report
from study_report import Contrast, write_study

from canon_trl.options import did_you_mean
from canon_trl.sampling.chunks import atomic_write

SCRIPTS = {"train_canon": "canon", "train_astar_po": "astar_po"}  # the trainer of each
DEFAULT_SCRIPT = "train_canon"
HARNESS_KEYS = ("script", "tasks", "baseline")  # keys of a method that are not options of its training
# Options that training shares with the commands that sample.
DATA_OPTIONS = (
    "task",
    "task_eval_prompts",
    "dataset_name",
    "dataset_config",
    "dataset_test_split",
    "eval_dataset_name",
    "eval_dataset_config",
    "prompt_column",
    "answer_column",
    "answer_template",
    "system_prompt",
    "reward_funcs",
    "reward_weights",
    "reward_time_limit",
    "soft_overlong_cache",
    "max_completion_length",
    "chat_template_kwargs",
)
# Options that value estimation shares with training unless `values` overrides them: both use the same prompts and the
# same initial policy.
VALUE_OPTIONS = (
    *DATA_OPTIONS,
    *("task_train_prompts", "dataset_train_split", "model_name_or_path", "reward_flip"),
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
)


@dataclass(frozen=True)
class Comparison:
    """The content of a comparison's YAML file."""

    output_dir: Path
    seeds: list[int]
    baseline: str
    tasks: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    metrics: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)
    launcher: list[str] = field(default_factory=lambda: [sys.executable])
    keep_models: bool = True
    report_dir: Path | None = None
    results_dir: Path | None = None
    runs_per_process: int = 1
    predictions: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    exploratory: bool = False
    contrasts: list[Contrast] = field(default_factory=list)
    primary: str | None = None
    learning_rates: list[float] = field(default_factory=list)
    tuning_seeds: list[int] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> "Comparison":
        found = yaml.safe_load(path.read_text())
        known = {each.name for each in fields(cls)}
        if unknown := sorted(set(found) - known):
            raise ValueError(f"{path} has the unknown keys {unknown}; known: {sorted(known)}")
        needed = {each.name for each in fields(cls) if each.default is each.default_factory is MISSING}
        if missing := sorted(needed - set(found)):
            raise ValueError(f"{path} has no keys {missing}")
        found |= {name: Path(found[name]) for name in ("output_dir", "report_dir", "results_dir") if name in found}
        return cls(**found | {"contrasts": [Contrast.of(each) for each in found.get("contrasts", [])]})

    def __post_init__(self) -> None:
        if self.baseline not in self.methods:
            raise ValueError(f"baseline={self.baseline!r} must be one of the methods {list(self.methods)}")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds={self.seeds} must contain at least one number and no duplicates")
        given = {1, *(self.evaluate.get("pass_at_k") or [self.evaluate.get("num_samples")])}
        for name in self.metrics:
            metric(name)
            if name.startswith("pass@") and name not in {f"pass@{k}" for k in given}:
                raise ValueError(f"metrics has {name!r}, which needs its k in evaluate.pass_at_k")
        for name, method in self.methods.items():
            if (script := method.get("script", DEFAULT_SCRIPT)) not in SCRIPTS:
                raise ValueError(f"methods.{name}.script={script!r} must be one of {list(SCRIPTS)}")
            if method.get("baseline", self.baseline) not in self.methods:
                raise ValueError(f"methods.{name}.baseline={method['baseline']!r} must be one of {list(self.methods)}")
            if alike := [other for other in self.methods if other != name and folder_of(other) == folder_of(name)]:
                raise ValueError(f"methods has {[name, *alike]}, which would share the folder {folder_of(name)!r}")
            if script == "train_astar_po" and (own := sorted({*method} & {*VALUE_OPTIONS} - {*self.values})):
                raise ValueError(
                    f"methods.{name} has {own}, but all methods of a task share the values, which are sampled once: "
                    "set it in options or tasks, or set in values what to sample them with"
                )
            if unknown := sorted(set(method.get("tasks", [])) - set(self.tasks)):
                raise ValueError(f"methods.{name}.tasks has {unknown}; the tasks are {list(self.tasks)}")
        if self.runs_per_process < 1:
            raise ValueError(f"runs_per_process={self.runs_per_process!r} must be at least 1")
        self._check_predictions()
        self._check_study()

    def _check_predictions(self) -> None:
        known = {task: {name for name in self.methods_of(task) if name in self.baselines()} for task in self.tasks}
        for task, methods in self.predictions.items():
            if task not in known:
                raise ValueError(f"predictions has {task!r}{did_you_mean(task, known)}; the tasks are {[*known]}")
            for method, predicted in methods.items():
                if method not in known[task]:
                    raise ValueError(
                        f"predictions.{task} has {method!r}{did_you_mean(method, known[task])}; the methods with a "
                        f"baseline are {sorted(known[task])}"
                    )
                if wrong := sorted(set(predicted) - set(self.metrics)):
                    raise ValueError(f"predictions.{task}.{method} has {wrong}; the metrics are {self.metrics}")
                if wrong := sorted(set(map(str, predicted.values())) - set(PREDICTIONS)):
                    raise ValueError(f"predictions.{task}.{method} has {wrong}; choose from {[*PREDICTIONS]}")

    def _check_study(self) -> None:
        if self.primary is None and (self.contrasts or self.learning_rates):
            raise ValueError("primary is missing; contrasts and learning_rates need the name of a metric")
        if self.primary is not None:
            metric(self.primary)
        for contrast in self.contrasts:
            contrast.check([(task, name) for task in self.tasks for name in self.methods_of(task)])
        if bool(self.learning_rates) != bool(self.tuning_seeds):
            raise ValueError(
                f"learning_rates={self.learning_rates} and tuning_seeds={self.tuning_seeds}: give both or none"
            )
        for rate in self.learning_rates:
            check_learning_rate(rate)
        if self.learning_rates and not is_accuracy(str(self.primary)):
            raise ValueError(
                f"primary={self.primary!r} must be an accuracy, one of {[*ACCURACIES, 'pass@k with a number k']}: "
                "each method uses the learning rate with the highest"
            )
        if used := sorted(set(self.tuning_seeds) & set(self.seeds)):
            raise ValueError(f"tuning_seeds has {used}, which are also in seeds; tune on other seeds")
        groups = {"options": self.options} | {f"tasks.{name}": each for name, each in self.tasks.items()}
        for name, options in (groups | {f"methods.{name}": each for name, each in self.methods.items()}).items():
            if self.learning_rates and "learning_rate" in options:
                raise ValueError(f"{name} has a learning_rate, but learning_rates={self.learning_rates} are tuned")

    def methods_of(self, task: str) -> list[str]:
        return [name for name, method in self.methods.items() if task in method.get("tasks", self.tasks)]

    def _run(self, task: str, method: str, seed: int, rate: float | None = None, part: str = "runs") -> "Run":
        place = Path(part) / task / folder_of(method) / ("" if part == "runs" else f"{rate:g}") / str(seed)
        result = self.output_dir / place / "result.json"
        if self.results_dir is not None:
            result = self.results_dir / place.with_suffix(".json")
        return Run(task, method, seed, self.output_dir / place, result, rate)

    def runs(self) -> list["Run"]:
        """All runs, seed by seed, so that finished runs form pairs even if the comparison stops early.

        With learning rates to tune, a method's learning rate is `None` until its tuning runs are finished.
        """
        rates = {(task, name): self.best_rate(task, name) for task in self.tasks for name in self.methods_of(task)}
        return [self._run(*pair, seed, rates[pair]) for seed in self.seeds for pair in rates]

    def tuning_runs(self) -> list["Run"]:
        """The runs that choose the learning rates, seed by seed."""
        return [
            self._run(task, name, seed, rate, part="tuning")
            for seed in self.tuning_seeds
            for task in self.tasks
            for name in self.methods_of(task)
            for rate in self.learning_rates
        ]

    def tuning(self, task: str, method: str) -> dict[float, list[float | None]]:
        """The primary metric by learning rate, one value per tuning seed.

        It is `None` for a run that is not finished or does not have the metric.
        """
        found: dict[float, list[float | None]] = {}
        for rate in self.learning_rates:
            results = [self._run(task, method, seed, rate, part="tuning").result() for seed in self.tuning_seeds]
            found[rate] = [None if result is None else value_of(self.primary, result) for result in results]
        return found

    def best_rate(self, task: str, method: str) -> float | None:
        """The learning rate with the best mean over the tuning seeds; `None` while `missing_rate` says why."""
        means = {rate: values for rate, values in self.tuning(task, method).items() if None not in values}
        if len(means) < len(self.learning_rates) or not means:
            return None
        return max(means, key=lambda rate: sum(means[rate]))

    def missing_rate(self, task: str, method: str) -> tuple[str, bool]:
        """Why a method has no learning rate yet, and whether its tuning is finished all the same."""
        runs = [run for run in self.tuning_runs() if (run.task, run.method) == (task, method)]
        results = [run.result() for run in runs]
        if missing := results.count(None):
            return f"{missing} of {len(runs)} tuning runs are not finished", False
        without = [run for run, result in zip(runs, results, strict=True) if value_of(self.primary, result) is None]
        return f"{len(without)} of {len(runs)} tuning runs have no {self.primary}, such as {without[0].file}", True

    def untuned(self) -> dict[str, bool]:
        """Lines that say which methods have no learning rate yet and why, and whether their tuning is finished."""
        pairs = [(task, name) for task in self.tasks for name in self.methods_of(task) if self.learning_rates]
        missing = {pair: self.missing_rate(*pair) for pair in pairs if self.best_rate(*pair) is None}
        return {f"{task} {name}: no learning rate, {why}": done for (task, name), (why, done) in missing.items()}

    def baselines(self) -> dict[str, str]:
        """The method that each method is compared with, unless that is itself."""
        named = {name: method.get("baseline", self.baseline) for name, method in self.methods.items()}
        return {name: baseline for name, baseline in named.items() if name != baseline}

    def script_of(self, run: "Run") -> str:
        return self.methods[run.method].get("script", DEFAULT_SCRIPT)

    def values_of(self, task: str) -> Path:
        """The folder of A*-PO's values for a task."""
        return self.output_dir / "values" / task

    def settings_of(self, run: "Run") -> dict[str, Any]:
        """Everything that the result of a run depends on."""
        method = {key: value for key, value in self.methods[run.method].items() if key not in HARNESS_KEYS}
        script = self.script_of(run)
        base = {"task": run.task} if "dataset_name" not in self.tasks[run.task] else {}
        training = base | self.options | self.tasks[run.task] | method | {"seed": run.seed}
        if run.learning_rate is not None:
            training["learning_rate"] = run.learning_rate
        settings = {"script": script, "training": training, "evaluate": self.evaluate}
        if script == "train_astar_po":
            training["values"] = str(self.values_of(run.task))
            settings["values"] = self.values
        return settings


def check_learning_rate(rate: Any) -> None:
    """Reject what is not a positive number, such as 1e-4, which YAML reads as text."""
    try:
        number = float(rate)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf or isinstance(rate, bool):
        raise ValueError(f"learning_rates has {rate!r}; all must be positive numbers")
    if isinstance(rate, str):
        digits, exponent = f"{number:.15e}".split("e")
        raise ValueError(f"learning_rates has {rate!r}; write {float(digits)}e{int(exponent):+d}")


def folder_of(method: str) -> str:
    return re.sub(r"[^\w.]+", "_", method)


@dataclass(frozen=True)
class Run:
    """A method on a task with a seed."""

    task: str
    method: str
    seed: int
    folder: Path
    file: Path  # of the result
    learning_rate: float | None = None  # if it is tuned

    def result(self) -> dict[str, Any] | None:
        return read_json(self.file)


def perform_all(jobs: list[dict[str, Any]]) -> bool:
    """Perform runs one after the other, each with its output in `log.txt`, and return whether all succeeded."""
    succeeded = True
    for job in jobs:
        folder = Path(job["folder"])
        with (folder / "log.txt").open("a") as log:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())
        try:
            perform(folder, Path(job["result"]), keep_model=job["keep_model"])
        except Exception:
            if len(jobs) == 1:
                raise
            traceback.print_exc()
            succeeded = False
        gc.collect()  # trainers contain cycles
    return succeeded


def perform(folder: Path, result: Path, *, keep_model: bool) -> None:
    """Do what is left of a run's training and evaluation, and write its result."""
    from canon_trl.cli import evaluate, train  # slow to import, and only needed here
    from canon_trl.evaluation.run_report import accuracy_name

    settings = read_json(folder / "settings.json")
    options = settings["training"] | {"output_dir": str(folder / "model"), "disable_tqdm": True}
    if not (folder / "curve.json").exists():
        config = write_yaml(folder / "options.yaml", options)
        trainer = train.main(["--trainer", SCRIPTS[settings["script"]], "--config", str(config)])
        reward = accuracy_name(trainer)
        if trainer.accelerator.is_main_process:
            write_json(folder / "training.json", training_batches(trainer.state.log_history, reward))
            write_json(folder / "curve.json", curve(trainer.state.log_history, reward))
        trainer.accelerator.wait_for_everyone()
    options = evaluation_options(settings, model=folder / "model", folder=folder / "evaluation")
    evaluate.main(["--config", str(write_yaml(folder / "evaluation.yaml", options))])
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
    """A result to commit: four decimals, and of the evaluation only what the reports read."""
    kept = ("avg", "pass_at_k", "length", "entropy", "tokens_per_right_answer", "num_prompts", "num_samples")
    numbers = found | {"evaluation": {name: found["evaluation"][name] for name in kept}}
    rounded = json.loads(json.dumps(numbers), parse_float=lambda text: round(float(text), 4))
    return rounded | {"settings": found["settings"]}


def evaluation_options(settings: dict[str, Any], *, model: Path, folder: Path) -> dict[str, Any]:
    """Options of the command `evaluate`: the data options of the training and the comparison's `evaluate`."""
    training = settings["training"]
    options = {key: training[key] for key in DATA_OPTIONS if key in training} | settings["evaluate"]
    return options | {"model_name_or_path": str(model), "output_dir": str(folder)}


def training_batches(history: list[dict[str, Any]], reward: str) -> dict[str, list[float]]:
    """A run's accuracy, length and entropy on the batches that it trained on, one number per log entry."""
    names = {"accuracy": f"rewards/{reward}/mean", "length": "completions/mean_length", "entropy": "entropy"}
    entries = [entry for entry in history if names["accuracy"] in entry]
    return {name: [entry.get(logged) for entry in entries] for name, logged in names.items()}


def curve(history: list[dict[str, Any]], reward: str) -> list[dict[str, float]]:
    """A run's numbers at every evaluation, with the seconds that its optimiser steps had taken so far."""
    points, seconds = [], 0.0
    for entry in history:
        seconds += entry.get("step_time", 0.0)
        if (accuracy := entry.get(f"eval_rewards/{reward}/mean")) is not None:
            point = {"accuracy": accuracy, "length": entry["eval_completions/mean_length"]}
            points.append(point | {"entropy": entry["eval_entropy"], "step": entry["step"], "seconds": seconds})
    return points


def write_yaml(path: Path, options: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(options))
    return path


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    with atomic_write(path) as file:
        file.write_text(json.dumps(content, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def unfinished(comparison: Comparison) -> list[Run]:
    """The runs that have no result yet.

    Raises:
        ValueError: A result was made with different settings.
    """
    missing = []
    for run in [*comparison.tuning_runs(), *comparison.runs()]:
        if (result := run.result()) is None:
            missing.append(run)
        elif changed := differences(result["settings"], comparison.settings_of(run)):
            place = "output_dir" if comparison.results_dir is None else "results_dir"
            raise ValueError(f"{run.file} was made with {changed}; delete it or name another {place}")
    return missing


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The settings in which a run differs from what is wanted, for an error message; empty if they agree."""

    def flat(settings: dict[str, Any]) -> dict[str, Any]:
        parts = {name: part if isinstance(part, dict) else {"": part} for name, part in settings.items()}
        return {f"{name}.{key}".rstrip("."): value for name, part in parts.items() for key, value in part.items()}

    found, wanted = flat(found), flat(wanted)
    changed = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
    return ", ".join(f"{name}={found.get(name)!r}, not {wanted.get(name)!r}" for name in changed)


@contextmanager
def only_one_in(folder: Path) -> Iterator[int]:
    """Lock a folder; the process that works there inherits the lock.

    If this process is killed and that one survives, the next comparison waits for it to end.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def start(command: list[str], log: Path, threads: int, inherits: Sequence[int] = ()) -> bool:
    """Run a command with its output in a log file, and return whether it succeeded."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        streams = {"stdout": file, "stderr": subprocess.STDOUT, "pass_fds": inherits}
        return subprocess.run(command, env=environment, **streams).returncode == 0


def sample_values(comparison: Comparison, task: str, threads: int) -> None:
    """Run stage 1 of A*-PO for a task, whose values all seeds share, and record the seconds that it takes."""
    folder, config = comparison.values_of(task), comparison.values_of(task) / "options.yaml"
    options = {"task": task} | comparison.options | comparison.tasks[task]
    options = {key: options[key] for key in VALUE_OPTIONS if key in options} | comparison.values
    options |= {"output_dir": str(folder)}
    with only_one_in(folder) as lock:
        if not (folder / "seconds.json").exists():
            shutil.rmtree(folder, ignore_errors=True)  # start over, so that the seconds cover all of the sampling
        elif yaml.safe_load(config.read_text()) == options:
            return
        folder.mkdir(exist_ok=True)
        write_yaml(config, options)  # the command rejects a folder with values made with other options
        command = [*comparison.launcher, "-m", "canon_trl", "values", "--config", str(config)]
        begin = time.perf_counter()
        if not start(command, folder / "log.txt", threads, inherits=[lock]):
            raise RuntimeError(f"sampling the values of {task} failed, see {folder / 'log.txt'}")
        write_json(folder / "seconds.json", time.perf_counter() - begin)


def execute(comparison: Comparison, runs: list[Run], threads: int) -> list[Run]:
    """Perform runs in a separate process, and return those that failed."""
    with ExitStack() as stack:
        locks = [stack.enter_context(only_one_in(run.folder)) for run in runs]
        runs = [run for run in runs if run.result() is None]
        if not runs:
            return []
        for run in runs:
            prepare(run.folder, comparison.settings_of(run))
        jobs = [{"folder": str(run.folder), "result": str(run.file)} for run in runs]
        write_json(runs[0].folder / "jobs.json", [job | {"keep_model": comparison.keep_models} for job in jobs])
        command = [*comparison.launcher, __file__, str(runs[0].folder / "jobs.json"), "--perform"]
        succeeded = start(command, runs[0].folder / "log.txt", threads, inherits=locks)
        return [run for run in runs if run.result() is None or (len(runs) == 1 and not succeeded)]


def prepare(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a run, and remove what was made with others."""
    known = folder / "settings.json"
    changed = {key for key, value in (read_json(known) or {}).items() if value != settings.get(key)}
    trained = (folder / "curve.json").exists() and (folder / "model").exists()  # keep_models may have removed it
    if changed - {"evaluate"} or not trained:
        shutil.rmtree(folder, ignore_errors=True)  # training does not resume midway
    elif changed:
        shutil.rmtree(folder / "evaluation", ignore_errors=True)
    folder.mkdir(exist_ok=True)
    write_json(known, settings)


def execute_all(comparison: Comparison, jobs: int, threads: int) -> list[Run]:
    """Do the missing runs, several at a time, and return those that failed; tuning runs come first."""
    missing = unfinished(comparison)
    for task in {run.task for run in missing if comparison.script_of(run) == "train_astar_po"}:
        sample_values(comparison, task, threads)
    total = len(comparison.tuning_runs()) + len(comparison.runs())
    print(f"{len(missing)} of {total} runs to do, {jobs} at a time", flush=True)
    failed, count, begin = [], 0, time.perf_counter()
    for part in (comparison.tuning_runs, comparison.runs):
        todo = [run for run in part() if run.result() is None]
        if part == comparison.runs and comparison.learning_rates:
            todo = [run for run in todo if run.learning_rate is not None]
        size = comparison.runs_per_process
        chunks = [todo[place : place + size] for place in range(0, len(todo), size)]
        with ThreadPoolExecutor(jobs) as pool:
            started = {pool.submit(execute, comparison, chunk, threads): chunk for chunk in chunks}
            for done in as_completed(started):
                failures = done.result()
                failed += failures
                count += len(started[done])
                left = (time.perf_counter() - begin) / count * (len(missing) - count) / 60
                for run in started[done]:
                    outcome = f"FAILED, see {run.folder / 'log.txt'}" if run in failures else "done"
                    print(f"{run.task} {run.method} seed {run.seed}: {outcome}; {left:.0f} min left", flush=True)
    return failed


def collect(comparison: Comparison) -> list[dict[str, Any]]:
    """The results so far, each with its task, method and seed, and the seconds spent before its run."""
    results = []
    for run in comparison.runs():
        if (result := run.result()) is not None:
            values = comparison.values_of(run.task) / "seconds.json"
            before = read_json(values) if comparison.script_of(run) == "train_astar_po" else 0.0
            results.append(
                result | {"task": run.task, "method": run.method, "seed": run.seed, "seconds_before": before}
            )
    return results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="YAML file of the comparison")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; 0 only reports")
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    parser.add_argument("--perform", action="store_true", help=argparse.SUPPRESS)  # how this script calls itself
    options = parser.parse_args(argv)
    if options.perform:
        if not perform_all(read_json(options.file)):
            sys.exit(1)
        return
    comparison = Comparison.load(options.file)
    failed = execute_all(comparison, options.jobs, options.threads) if options.jobs else []
    untuned = comparison.untuned()
    for line in untuned:
        print(line, flush=True)
    if results := collect(comparison):
        command = f"python benchmarks/compare.py {options.file}"
        folder = comparison.report_dir or comparison.output_dir / "report"
        if comparison.contrasts:
            write_study(folder, comparison, results, command=command)
        else:
            write_report(
                folder,
                results,
                metrics=comparison.metrics,
                baselines=comparison.baselines(),
                command=command,
                predictions=comparison.predictions,
                exploratory=comparison.exploratory,
            )
    if failed:
        sys.exit(f"{len(failed)} runs failed")
    if stuck := sum(untuned.values()):
        sys.exit(f"tuning is finished, but no learning rate can be chosen for {stuck} of the methods above")


if __name__ == "__main__":
    main()

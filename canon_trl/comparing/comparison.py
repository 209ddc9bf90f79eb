"""The content of a comparison's YAML file, and the runs that it describes."""

import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from canon_trl.comparing.checks import check
from canon_trl.comparing.contrasts import Contrast
from canon_trl.comparing.metrics import value_of
from canon_trl.comparing.predictions import Predictions
from canon_trl.comparing.runs import Run, folder_of
from canon_trl.options import did_you_mean

DEFAULT_SCRIPT = "train_canon"
HARNESS_KEYS = ("script", "tasks", "baseline")  # keys of a method that are not options of its training


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
    predictions: Predictions = field(default_factory=dict)
    exploratory: bool = False
    contrasts: list[Contrast] = field(default_factory=list)
    primary: str | None = None
    learning_rates: list[float] = field(default_factory=list)
    tuning_seeds: list[int] = field(default_factory=list)
    folder: Path = Path()  # of the file; not one of its keys

    @classmethod
    def load(cls, path: Path) -> "Comparison":
        """Read and check a comparison.

        Raises:
            ValueError: the file is missing, is not valid, or describes something that cannot be run.
        """
        try:
            found = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"cannot read the comparison {str(path)!r}: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path} must contain keys and values, not a {type(found).__name__}")
        known = {each.name for each in fields(cls)} - {"folder"}
        if unknown := sorted(set(found) - known):
            hint = did_you_mean(unknown[0], known)
            raise ValueError(f"{path} has the unknown keys {unknown}{hint}; known: {sorted(known)}")
        needed = {each.name for each in fields(cls) if each.default is each.default_factory is MISSING}
        if missing := sorted(needed - set(found)):
            raise ValueError(f"{path} has no keys {missing}")
        found |= {name: Path(found[name]) for name in ("output_dir", "report_dir", "results_dir") if name in found}
        contrasts = [Contrast.of(each) for each in found.get("contrasts", [])]
        return cls(**found | {"contrasts": contrasts, "folder": path.resolve().parent})

    def __post_init__(self) -> None:
        check(self)

    def methods_of(self, task: str) -> list[str]:
        return [name for name, method in self.methods.items() if task in method.get("tasks", self.tasks)]

    def _run(self, task: str, method: str, seed: int, rate: float | None = None, part: str = "runs") -> Run:
        place = Path(part) / task / folder_of(method) / ("" if part == "runs" else f"{rate:g}") / str(seed)
        result = self.output_dir / place / "result.json"
        if self.results_dir is not None:
            result = self.results_dir / place.with_suffix(".json")
        return Run(task, method, seed, self.output_dir / place, result, rate)

    def runs(self) -> list[Run]:
        """Return all runs, seed by seed, so that finished runs form pairs even if the comparison stops early.

        With learning rates to tune, a method's learning rate is `None` until its tuning runs are finished.
        """
        rates = {(task, name): self.best_rate(task, name) for task in self.tasks for name in self.methods_of(task)}
        return [self._run(*pair, seed, rates[pair]) for seed in self.seeds for pair in rates]

    def tuning_runs(self) -> list[Run]:
        """Return the runs that choose the learning rates, seed by seed."""
        return [
            self._run(task, name, seed, rate, part="tuning")
            for seed in self.tuning_seeds
            for task in self.tasks
            for name in self.methods_of(task)
            for rate in self.learning_rates
        ]

    def tuning(self, task: str, method: str) -> dict[float, list[float | None]]:
        """Return the primary metric by learning rate, one value per tuning seed.

        It is `None` for a run that is not finished or does not have the metric.
        """
        found: dict[float, list[float | None]] = {}
        for rate in self.learning_rates:
            results = [self._run(task, method, seed, rate, part="tuning").result() for seed in self.tuning_seeds]
            found[rate] = [None if result is None else value_of(str(self.primary), result) for result in results]
        return found

    def best_rate(self, task: str, method: str) -> float | None:
        """Return the learning rate with the best mean over the tuning seeds; `None` while `missing_rate` says why."""
        found = self.tuning(task, method)
        totals = {rate: sum(value or 0.0 for value in values) for rate, values in found.items() if None not in values}
        if len(totals) < len(self.learning_rates) or not totals:
            return None
        return max(totals, key=lambda rate: totals[rate])

    def missing_rate(self, task: str, method: str) -> tuple[str, bool]:
        """Say why a method has no learning rate yet, and whether its tuning is finished all the same."""
        runs = [run for run in self.tuning_runs() if (run.task, run.method) == (task, method)]
        results = [run.result() for run in runs]
        if missing := results.count(None):
            return f"{missing} of {len(runs)} tuning runs are not finished", False
        found = {run: result for run, result in zip(runs, results, strict=True) if result is not None}
        without = [run for run, result in found.items() if value_of(str(self.primary), result) is None]
        return f"{len(without)} of {len(runs)} tuning runs have no {self.primary}, such as {without[0].file}", True

    def untuned(self) -> dict[str, bool]:
        """Say which methods have no learning rate yet and why, each with whether its tuning is finished."""
        pairs = [(task, name) for task in self.tasks for name in self.methods_of(task) if self.learning_rates]
        missing = {pair: self.missing_rate(*pair) for pair in pairs if self.best_rate(*pair) is None}
        return {f"{task} {name}: no learning rate, {why}": done for (task, name), (why, done) in missing.items()}

    def baselines(self) -> dict[str, str]:
        """Return the method that each method is compared with, unless that is itself."""
        named = {name: method.get("baseline", self.baseline) for name, method in self.methods.items()}
        return {name: baseline for name, baseline in named.items() if name != baseline}

    def script_of(self, method: str) -> str:
        script: str = self.methods[method].get("script", DEFAULT_SCRIPT)
        return script

    def values_of(self, task: str) -> Path:
        """Return the folder of A*-PO's values for a task."""
        return self.output_dir / "values" / task

    def settings_of(self, run: Run) -> dict[str, Any]:
        """Return everything that the result of a run depends on."""
        method = {key: value for key, value in self.methods[run.method].items() if key not in HARNESS_KEYS}
        script = self.script_of(run.method)
        base = {"task": run.task} if "dataset_name" not in self.tasks[run.task] else {}
        training = base | self.options | self.tasks[run.task] | method | {"seed": run.seed}
        if run.learning_rate is not None:
            training["learning_rate"] = run.learning_rate
        settings: dict[str, Any] = {"script": script, "training": training, "evaluate": self.evaluate}
        if script == "train_astar_po":
            training["values"] = str(self.values_of(run.task))
            settings["values"] = self.values
        return settings

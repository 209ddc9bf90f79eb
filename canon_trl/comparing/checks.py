"""The checks of a comparison's YAML file, before any run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from canon_trl.comparing.metrics import ACCURACIES, is_accuracy, metric
from canon_trl.comparing.predictions import PREDICTIONS
from canon_trl.comparing.runs import folder_of
from canon_trl.comparing.training_options import SCRIPTS, VALUE_OPTIONS
from canon_trl.options import did_you_mean

if TYPE_CHECKING:
    from canon_trl.comparing.comparison import Comparison


def check(comparison: Comparison) -> None:
    """Reject a comparison that names something unknown or contradicts itself."""
    if comparison.baseline not in comparison.methods:
        raise ValueError(
            f"baseline={comparison.baseline!r}{did_you_mean(comparison.baseline, comparison.methods)} must be one of "
            f"the methods {list(comparison.methods)}"
        )
    if len(set(comparison.seeds)) != len(comparison.seeds) or not comparison.seeds:
        raise ValueError(f"seeds={comparison.seeds} must contain at least one number and no duplicates")
    for name in comparison.metrics:
        check_metric(comparison, name, field="metrics")
    for name in comparison.methods:
        check_method(comparison, name)
    if comparison.runs_per_process < 1:
        raise ValueError(f"runs_per_process={comparison.runs_per_process!r} must be at least 1")
    check_predictions(comparison)
    check_study(comparison)
    check_learning_rates(comparison)


def check_metric(comparison: Comparison, name: str, *, field: str) -> None:
    """Reject an unknown metric, and pass@k with a k that the evaluation does not estimate."""
    metric(name, field=field)
    ks = {1, *(comparison.evaluate.get("pass_at_k") or [comparison.evaluate.get("num_samples")])}
    if name.startswith("pass@") and name not in {f"pass@{k}" for k in ks}:
        raise ValueError(f"{field} has {name!r}, which needs its k in evaluate.pass_at_k")


def check_method(comparison: Comparison, name: str) -> None:
    methods, tasks, method = comparison.methods, comparison.tasks, comparison.methods[name]
    if (script := comparison.script_of(name)) not in SCRIPTS:
        raise ValueError(f"methods.{name}.script={script!r} must be one of {list(SCRIPTS)}")
    if method.get("baseline", comparison.baseline) not in methods:
        raise ValueError(f"methods.{name}.baseline={method['baseline']!r} must be one of {list(methods)}")
    if alike := [other for other in methods if other != name and folder_of(other) == folder_of(name)]:
        raise ValueError(f"methods has {[name, *alike]}, which would share the folder {folder_of(name)!r}")
    if script == "train_astar_po" and (own := sorted({*method} & {*VALUE_OPTIONS} - {*comparison.values})):
        raise ValueError(
            f"methods.{name} has {own}, but all methods of a task share the values, which are sampled once: "
            "set it in options or tasks, or set in values what to sample them with"
        )
    if unknown := sorted(set(method.get("tasks", [])) - set(tasks)):
        raise ValueError(f"methods.{name}.tasks has {unknown}; the tasks are {list(tasks)}")


def check_predictions(comparison: Comparison) -> None:
    baselines = comparison.baselines()
    known = {task: [name for name in comparison.methods_of(task) if name in baselines] for task in comparison.tasks}
    for task, methods in comparison.predictions.items():
        if task not in known:
            raise ValueError(f"predictions has {task!r}{did_you_mean(task, known)}; the tasks are {[*known]}")
        for method, predicted in methods.items():
            if method not in known[task]:
                raise ValueError(
                    f"predictions.{task} has {method!r}{did_you_mean(method, known[task])}; the methods with a "
                    f"baseline are {known[task]}"
                )
            if wrong := sorted(set(predicted) - set(comparison.metrics)):
                raise ValueError(f"predictions.{task}.{method} has {wrong}; the metrics are {comparison.metrics}")
            if wrong := sorted(set(map(str, predicted.values())) - set(PREDICTIONS)):
                raise ValueError(f"predictions.{task}.{method} has {wrong}; choose from {[*PREDICTIONS]}")


def check_study(comparison: Comparison) -> None:
    if comparison.primary is None and (comparison.contrasts or comparison.learning_rates):
        raise ValueError("primary is missing; contrasts and learning_rates need the name of a metric")
    if comparison.primary is not None:
        check_metric(comparison, comparison.primary, field="primary")
    for contrast in comparison.contrasts:
        contrast.check([(task, name) for task in comparison.tasks for name in comparison.methods_of(task)])


def check_learning_rates(comparison: Comparison) -> None:
    rates, seeds = comparison.learning_rates, comparison.tuning_seeds
    if bool(rates) != bool(seeds):
        raise ValueError(f"learning_rates={rates} and tuning_seeds={seeds}: give both or none")
    if used := sorted(set(seeds) & set(comparison.seeds)):
        raise ValueError(f"tuning_seeds has {used}, which are also in seeds; tune on other seeds")
    if not rates:
        return
    for rate in rates:
        check_learning_rate(rate)
    if not is_accuracy(str(comparison.primary)):
        raise ValueError(
            f"primary={comparison.primary!r} must be an accuracy, one of {[*ACCURACIES, 'pass@k with a number k']}: "
            "each method uses the learning rate with the highest"
        )
    groups = {"options": comparison.options}
    groups |= {f"tasks.{name}": each for name, each in comparison.tasks.items()}
    groups |= {f"methods.{name}": each for name, each in comparison.methods.items()}
    for name, options in groups.items():
        if "learning_rate" in options:
            raise ValueError(f"{name} has a learning_rate, but learning_rates={rates} are tuned")


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

"""The differences that a study is made for, named before its runs."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from canon_trl.comparing.metrics import Result
from canon_trl.comparing.predictions import PREDICTIONS, outcome
from canon_trl.comparing.summary import by_method, difference_of
from canon_trl.options import did_you_mean

DIRECTIONS = [name for name, sign in PREDICTIONS.items() if sign]


@dataclass(frozen=True)
class Contrast:
    """A difference between two methods on a task, with its prediction."""

    task: str
    method: str
    minus: str
    prediction: str

    @classmethod
    def of(cls, given: dict[str, str]) -> "Contrast":
        known = [each.name for each in fields(cls)]
        if not isinstance(given, dict) or sorted(given) != sorted(known):
            raise ValueError(f"contrasts has {given!r}; each needs exactly the keys {known}")
        return cls(**given)

    def check(self, pairs: list[tuple[str, str]]) -> None:
        """Reject a contrast of methods that the study does not run on the task; `pairs` are task and method."""
        tasks = [*dict.fromkeys(task for task, _ in pairs)]
        if self.task not in tasks:
            raise ValueError(f"contrasts: task={self.task!r}{did_you_mean(self.task, tasks)} must be one of {tasks}")
        methods = [method for task, method in pairs if task == self.task]
        for key in ("method", "minus"):
            if (name := getattr(self, key)) not in methods:
                raise ValueError(
                    f"contrasts: {key}={name!r}{did_you_mean(name, methods)} must be a method of task {self.task!r}, "
                    f"one of {methods}"
                )
        if self.prediction not in DIRECTIONS:
            raise ValueError(f"contrasts: prediction={self.prediction!r} must be one of {DIRECTIONS}")

    def outcome(self, difference: dict[str, Any] | None) -> str:
        """Say whether the difference agrees with the prediction."""
        return outcome(self.prediction, difference)


def evaluate_contrast(contrast: Contrast, results: list[Result], *, metric: str, contrasts: int) -> dict[str, Any]:
    """Return a contrast with its difference, whose interval is corrected for the number of contrasts."""
    runs = by_method(results, contrast.task)
    own, other = runs.get(contrast.method, {}), runs.get(contrast.minus, {})
    seeds = sorted(set(own) & set(other))
    difference = difference_of(metric, [own[seed] for seed in seeds], [other[seed] for seed in seeds], contrasts)
    return asdict(contrast) | {"seeds": seeds, "difference": difference, "outcome": contrast.outcome(difference)}

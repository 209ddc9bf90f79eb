"""The result of a probe as JSON, as a page and as a picture."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from canon_trl.evaluation.estimates import Estimate
from canon_trl.evaluation.probing.estimator_statistics import EstimatorStatistics, PolicyGradient
from canon_trl.evaluation.probing.metric_statistics import MetricStatistics
from canon_trl.evaluation.probing.picture import draw
from canon_trl.evaluation.probing.prompt_statistics import PromptStatistics
from canon_trl.evaluation.probing.verdict import NOT_A_FORECAST, Finding
from canon_trl.evaluation.temperature import SuggestedTemperature
from canon_trl.sampling.chunks import atomic_write


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found.

    Attributes:
        prompts: how many prompts are worth training on.
        metrics: by name; `"random"` is the control, a metric that means nothing.
        gradient: the policy gradient of the sample.
        estimators: by label.
        left_out: why an estimator could not be computed, by label.
        temperature: the suggested temperature; `None` if none was asked for, or none within the bounds has the target
            entropy.
        temperature_note: why there is no temperature, or empty.
        verdict: the findings in sentences.
        settings: the options, the model and what was sketched.
        seconds: by part.
    """

    prompts: PromptStatistics
    metrics: dict[str, MetricStatistics]
    gradient: PolicyGradient
    estimators: dict[str, EstimatorStatistics]
    left_out: dict[str, str]
    temperature: SuggestedTemperature | None
    temperature_note: str
    verdict: list[Finding]
    settings: dict[str, Any]
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return the report for JSON; unknown numbers are `None`."""
        plain: dict[str, Any] = _without_nan(asdict(self) | {"note": NOT_A_FORECAST})
        return plain

    def as_markdown(self) -> str:
        """Return the report as a page."""
        lines = ["# Probe", "", *[f"- {each.says}" for each in self.verdict], "", NOT_A_FORECAST, ""]
        lines += ["## Prompts", "", *_table(["number", "value"], self._prompt_rows()), ""]
        lines += ["## Metrics", "", *_table(METRIC_COLUMNS, [_metric_row(*each) for each in self.metrics.items()]), ""]
        order = sorted(self.estimators.items(), key=lambda each: -_known(each[1].gain.mean))
        lines += ["## Estimators", "", *_table(ESTIMATOR_COLUMNS, [_estimator_row(*each) for each in order]), ""]
        lines += [f"- {label} {reason}." for label, reason in self.left_out.items()]
        lines += ["", "docs/probe.md explains the columns.", "", "## Settings", ""]
        lines += _table(["setting", "value"], [[name, f"`{value}`"] for name, value in self.settings.items()])
        seconds = ", ".join(f"{name} {value:.0f} s" for name, value in self.seconds.items())
        return "\n".join([*lines, "", f"{seconds}."]) + "\n"

    def save(self, folder: Path | str) -> list[Path]:
        """Write `probe.json`, `probe.md` and `probe.png`; return their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            "probe.json": json.dumps(self.as_json(), indent=1, allow_nan=False, default=str) + "\n",
            "probe.md": self.as_markdown(),
        }
        for name, text in texts.items():
            with atomic_write(folder / name) as file:
                file.write_text(text)
        draw(self.prompts, self.metrics, self.estimators, folder / "probe.png")
        return [folder / name for name in (*texts, "probe.png")]

    def _prompt_rows(self) -> list[list[str]]:
        found = self.prompts
        rows = [
            ["prompts", str(found.num_prompts)],
            ["prompts without a scored response", str(found.unscored_prompts)],
            ["responses per prompt", str(found.num_samples)],
            ["accuracy", _estimate(found.accuracy)],
            ["prompts with different rewards", str(found.with_spread)],
            ["never right", str(found.never_right)],
            ["always right", str(found.always_right)],
            ["prompts by accuracy, 0 to 1 in tenths", " ".join(map(str, found.histogram))],
        ]
        rows += [[f"pass@{k}", _estimate(each)] for k, each in found.pass_at_k.items()]
        rows += [
            [f"groups of {size} with right and wrong responses", f"{share:.3f}"]
            for size, share in found.groups_with_spread.items()
        ]
        rows += [["mean length", f"{found.length:.1f}"], ["cut off", f"{found.truncated:.3f}"]]
        if self.temperature is not None:
            entropy = f"entropy {self.temperature.entropy:.2f} nats per token"
            rows.append(["suggested temperature", f"{self.temperature.temperature:.2f} ({entropy})"])
        elif self.temperature_note:
            rows.append(["suggested temperature", self.temperature_note])
        return rows


METRIC_COLUMNS = [
    *("metric", "correlation", "gap", "higher half wins", "ceiling gap", "explained", "gap varies by", "trap"),
]
ESTIMATOR_COLUMNS = [
    *("estimator", "groups with signal", "magnitude", "signal", "SNR of a step", "cosine", "first-order gain"),
    *("length (tokens)", "entropy (nats)"),
]


def _metric_row(name: str, found: MetricStatistics) -> list[str]:
    return [
        name,
        _estimate(found.correlation),
        _estimate(found.gap),
        f"{found.higher_wins:.2f}",
        _estimate(found.ceiling_gap),
        _estimate(found.explained),
        _number(found.gap_deviation),
        "yes" if found.trap else "no",
    ]


def _estimator_row(label: str, found: EstimatorStatistics) -> list[str]:
    return [
        label,
        f"{found.groups_with_signal:.2f}",
        _number(found.magnitude, 2),
        _estimate(found.signal),
        _number(found.snr.mean, 2),
        _estimate(found.cosine, 2),
        _estimate(found.gain, 2),
        _estimate(found.length),
        _estimate(found.entropy, 4),
    ]


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def _number(value: float, digits: int = 3) -> str:
    return "unknown" if math.isnan(value) else f"{value:.{digits}f}"


def _estimate(estimate: Estimate, digits: int = 3) -> str:
    interval = "" if math.isnan(estimate.low) else f" ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"
    return _number(estimate.mean, digits) + interval


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

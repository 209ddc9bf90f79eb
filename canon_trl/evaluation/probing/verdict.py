"""What may be said about a probe in sentences, and what may not.

A probe sees one sample of the model before training. It can say whether a metric matters, which way length moves in
the first steps, whether an estimator has a direction that is distinguishable from noise, and whether there is a trap.
It cannot forecast accuracy: gains are first-order, and training on the task `hint` ends in the reverse of their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan

from scipy.stats import norm

from canon_trl.evaluation.estimates import Estimate
from canon_trl.evaluation.probing.estimator_statistics import EstimatorStatistics, PolicyGradient
from canon_trl.evaluation.probing.estimators import inter, intra, is_control
from canon_trl.evaluation.probing.metric_statistics import MetricStatistics, sign_of
from canon_trl.evaluation.probing.prompt_statistics import PromptStatistics
from canon_trl.metrics import RANDOM

LEAST_EXPLAINED = 0.01  # share of the variance of rewards that a metric that matters explains at least
NEGLIGIBLE = 0.05  # upper bound of the share that a metric that does not matter explains
NOT_A_FORECAST = (
    "None of this forecasts accuracy. Gains and directions describe the first steps, and later steps may reverse them."
)


@dataclass(frozen=True)
class Finding:
    """A sentence of the verdict.

    Attributes:
        about: "prompts", "metric NAME", "estimators" or "length".
        kind: "counts", "matters", "depends on the prompt", "does not matter", "trap", "unknown", "signal", "no signal"
            or "direction".
        says: one or two sentences.
    """

    about: str
    kind: str
    says: str


def conclude(
    prompts: PromptStatistics,
    metrics: Mapping[str, MetricStatistics],
    gradient: PolicyGradient,
    estimators: Mapping[str, EstimatorStatistics],
    *,
    confidence: float = 0.95,
) -> list[Finding]:
    """Return the findings that the numbers support.

    Nothing is said about estimators or length if the policy gradient of the sample cannot be distinguished from noise.

    Args:
        prompts, metrics, gradient, estimators: the statistics.
        confidence: probability of the intervals of the estimators. What is said about the estimators holds together
            with it.
    """
    judged = {name: each for name, each in metrics.items() if name != RANDOM}
    trapped = any(matters(each) and each.trap for each in judged.values())
    findings = [about_prompts(prompts)]
    findings += [about_metric(name, each, any_trap=trapped) for name, each in judged.items()]
    shown = {label: each for label, each in estimators.items() if not is_control(label)}
    return findings + (about_estimators(shown, confidence) if gradient.found else [no_verdict(gradient)])


def corrected_sign(estimate: Estimate, comparisons: int, confidence: float) -> int:
    """Return the sign of an estimate with Bonferroni's correction, or 0 if its interval then contains 0.

    The interval is widened as that of a normal distribution would be, since the bootstrap has too few draws for
    extreme quantiles.
    """
    error = 1 - confidence
    factor = norm.ppf(1 - error / 2 / max(comparisons, 1)) / norm.ppf(1 - error / 2)
    low, high = (estimate.mean + factor * (bound - estimate.mean) for bound in (estimate.low, estimate.high))
    return sign_of(Estimate(estimate.mean, low, high))


def matters(metric: MetricStatistics) -> bool:
    """Whether one of the halves earns more, beyond noise and enough to explain a share of the variance of rewards."""
    return sign_of(metric.gap) != 0 and metric.explained.mean >= LEAST_EXPLAINED


def depends_on_prompt(metric: MetricStatistics) -> bool:
    """Whether the halves differ beyond noise within prompts, but neither earns more over all prompts."""
    return metric.gap.low <= 0 <= metric.gap.high and metric.explained.low >= LEAST_EXPLAINED


def about_prompts(prompts: PromptStatistics) -> Finding:
    parts = [
        f"{prompts.with_spread} of {prompts.num_prompts} prompts are worth training on: their {prompts.num_samples} "
        f"responses have different rewards. {prompts.never_right} were never solved, {prompts.always_right} always."
    ]
    if prompts.truncated > 0.1:
        parts.append(f"{prompts.truncated:.0%} of the responses were cut off; consider a larger maximum length.")
    return Finding("prompts", "counts", " ".join(parts))


def about_metric(name: str, metric: MetricStatistics, *, any_trap: bool) -> Finding:
    """Say whether a metric matters, and whether it is a trap.

    Args:
        name: the metric.
        metric: its statistics.
        any_trap: whether any metric of the probe is a trap. Metrics are correlated, so then no other is called safe.
    """
    about, gap = f"metric {name}", metric.gap
    if depends_on_prompt(metric):
        says = (
            f"{name} matters here, but which half earns more depends on the prompt: the split explains "
            f"{metric.explained.mean:.0%} of the variance of rewards within groups, while the gap of {_shown(gap)} "
            f"varies by {metric.gap_deviation:.2f}."
        )
        if sign := sign_of(metric.ceiling_gap):
            ahead = "higher" if sign > 0 else "lower"
            says += f" The {ahead} half is better by {_shown(metric.ceiling_gap, sign=sign)} at its best responses."
        return Finding(about, "depends on the prompt", says)
    if not matters(metric):
        if not metric.gap.low <= gap.high:  # the bounds are unknown
            return Finding(about, "unknown", f"No verdict on {name}: its halves have no spread to judge the gap by.")
        upper = metric.explained.high
        if not upper <= NEGLIGIBLE:
            says = f"No verdict on {name}: neither half earns more beyond noise (gap {_shown(gap)})"
            says += "" if isnan(upper) else f", but the split may explain up to {upper:.0%} of the variance of rewards"
            return Finding(about, "unknown", f"{says}. Sample more prompts.")
        says = (
            f"{name} does not matter here: the gap of its halves is {_shown(gap)}, and the split explains at most "
            f"{max(upper, 0):.0%} of the variance of rewards within groups. It acts like a random split."
        )
        return Finding(about, "does not matter", says)
    better, other = ("higher", "lower") if gap.mean > 0 else ("lower", "higher")
    says = (
        f"{name} matters here: the {better} half earns {_shown(gap, sign=sign_of(gap))} more, which explains "
        f"{metric.explained.mean:.0%} of the variance of rewards within groups."
    )
    if metric.trap:
        ceiling = _shown(metric.ceiling_gap, sign=sign_of(metric.ceiling_gap))
        says += (
            f" But the {other} half is better by {ceiling} at its best responses, which is the sign of a trap: what "
            f"pays now may be worse in the end. Do not use {inter(name)}; {intra(name)} keeps both halves alive."
        )
        return Finding(about, "trap", says)
    if metric.gap_deviation > abs(gap.mean):
        says += f" But the better half depends on the prompt: the gap varies by {metric.gap_deviation:.2f}."
    if any_trap:
        says += " Another metric shows a trap, so this is no reason to favour the half that pays now."
    elif sign_of(metric.ceiling_gap):
        says += f" The {better} half is also ahead at its best responses, so this sample shows no trap."
    else:
        says += " At their best responses the halves do not differ beyond noise, so a trap cannot be judged."
    return Finding(about, "matters", says)


def no_verdict(gradient: PolicyGradient) -> Finding:
    return Finding(
        "estimators",
        "unknown",
        "No verdict on estimators or on length: the policy gradient of this sample cannot be distinguished from noise "
        f"(signal {_shown(gradient.signal)}). Sample more prompts, or prompts whose rewards differ more.",
    )


def about_estimators(estimators: Mapping[str, EstimatorStatistics], confidence: float) -> list[Finding]:
    """Say which estimators have a signal, and which way length moves under those that have one."""
    clear = {
        label: each
        for label, each in estimators.items()
        if corrected_sign(each.signal, len(estimators), confidence) > 0
    }
    unclear = [label for label in estimators if label not in clear]
    wrong = [label for label, each in clear.items() if corrected_sign(each.gain, len(estimators), confidence) < 0]
    says = f"{len(clear)} of {len(estimators)} estimators have a signal above noise in this sample."
    findings = [Finding("estimators", "signal", says)]
    if unclear:
        findings.append(Finding("estimators", "no signal", f"Without a signal above noise: {_listed(unclear)}."))
    if wrong:
        says = f"Against the policy gradient in the first steps: {_listed(wrong)}."
        findings.append(Finding("estimators", "direction", says))
    return [*findings, Finding("length", "direction", about_length(clear, confidence))] if clear else findings


def about_length(estimators: Mapping[str, EstimatorStatistics], confidence: float) -> str:
    by_sign: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for label, each in estimators.items():
        by_sign[corrected_sign(each.length, len(estimators), confidence)].append(label)
    kinds = {1: "longer", -1: "shorter"}
    named = {
        sign: "every estimator that has a signal" if len(labels) == len(estimators) else _listed(labels)
        for sign, labels in by_sign.items()
    }
    moved = [f"First steps make responses {kind} with {named[sign]}." for sign, kind in kinds.items() if by_sign[sign]]
    rest = f"None of the other {len(by_sign[0])}" if moved else "No estimator that has a signal"
    return " ".join([*moved, f"{rest} moves length beyond noise."] if by_sign[0] else moved)


def _listed(labels: list[str]) -> str:
    return "; ".join(labels) if any("," in label for label in labels) else ", ".join(labels)


def _shown(estimate: Estimate, *, sign: int = 1) -> str:
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    return f"{sign * estimate.mean:.3f} ({low:.3f} to {high:.3f})"

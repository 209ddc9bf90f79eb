"""The page of `every_method.py`: what each method learned, from the results of its runs."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from canon_trl.evaluation import paired_difference

Result = dict[str, Any]
Runs = dict[int, Result]  # by seed

BASELINES = {1: "dr_grpo", 4: "dr_grpo_4_updates"}  # by updates per rollout
BY_UPDATES = {1: "Dr.GRPO", 4: "Dr.GRPO, 4 updates"}
LAST = 5  # rollouts

COLUMNS = (
    *("method", "seeds", "accuracy at first", "at the end", "difference"),
    *("entropy", "length", "step time", "learns"),
)
TITLES = {
    "baseline": "Dr.GRPO",
    "policy_reward": "Policy rewards",
    "advantage_estimator": "Advantages",
    "token_advantage": "Token advantages",
    "policy_loss": "Policy losses",
    "loss_term": "Loss terms",
    "controller": "Controllers",
}

# Why a method gains less than half of what Dr.GRPO gains.
EXPLANATIONS: dict[str, str] = {}

INTRODUCTION = """# Every method trains

Each method of every stage trains the embedded model on `arithmetic`: {rollouts} rollouts of 8 prompts with 8
responses, learning rate 4e-4, with seeds {seeds}. The question is whether a method learns, so that a wrong sign or
scale cannot hide. **It is not which method is better**: nothing is tuned, the task is easy, and three seeds cannot
separate methods that are close ([comparisons](comparisons.md) can).

<!-- not run: {hours} of training on one core -->
```bash
OMP_NUM_THREADS=1 python benchmarks/every_method.py             # the missing runs, then this page
python benchmarks/every_method.py --jobs 0                      # only this page
```

Results: `benchmarks/results/every_method`, one file per run with its options, made with {versions}.

- **Accuracy**: share of right responses in training, at the first rollout, which is the untrained model's, and in the
  last {last} rollouts. Means over seeds, with 95% intervals (Student) that hold for each number alone.
- **Difference**: accuracy in the last {last} rollouts minus that of Dr.GRPO with the same seeds and the same number of
  updates per rollout.
- **Entropy** (nats per token) and **length** (tokens): in the last {last} rollouts; {entropy} and {length} at first.
- **Step time**: CPU time per rollout with its updates, divided by Dr.GRPO's. It includes what the method does to the
  length of responses. [Speed](speed.md) has the cost at equal lengths.
- **Learns**: yes if the gain in accuracy is at least half of Dr.GRPO's; slowly if it is less but its interval is above
  0; otherwise no.

A method acts on Dr.GRPO's advantages unless it replaces them. Methods that change nothing until the policy has moved
away from the rollout train with 4 updates per rollout, each on a quarter of its responses. Options are defaults except
for those shown. A*-PO needs values and is compared with Dr.GRPO in [comparisons](comparisons.md).
"""


def write_report(results: list[Result], *, stages: Sequence[str]) -> str:
    """Return the page."""
    runs = by_method(results)
    baselines = {updates: runs.get(("baseline", name), {}) for updates, name in BASELINES.items()}
    if not baselines[1]:
        raise ValueError("no run of Dr.GRPO has finished, so there is nothing to compare with")
    lines = [introduction(baselines[1], results)]
    for stage in ("baseline", *stages):
        found = {name: seeds for (of, name), seeds in runs.items() if of == stage}
        if found:
            lines += section(stage, found, baselines)
    return "\n".join(lines)


def by_method(results: list[Result]) -> dict[tuple[str, str], Runs]:
    """Return the results by stage and method, then by seed."""
    found: dict[tuple[str, str], Runs] = {}
    for result in results:
        found.setdefault((result["stage"], result["method"]), {})[result["seed"]] = result
    return found


def introduction(baseline: Runs, results: list[Result]) -> str:
    one = next(iter(baseline.values()))
    seconds = sum(len(result["accuracy"]) * result["cpu_seconds_per_rollout"] for result in results)
    return INTRODUCTION.format(
        rollouts=len(one["accuracy"]),
        seeds=", ".join(str(seed) for seed in sorted(baseline)),
        last=LAST,
        hours=f"{seconds / 60:.0f} minutes",
        entropy=f"{fmean(run['entropy'][0] for run in baseline.values()):.2f}",
        length=f"{fmean(run['length'][0] for run in baseline.values()):.1f}",
        versions=", ".join(f"{package} {number}" for package, number in one["versions"].items()),
    )


def section(stage: str, found: dict[str, Runs], baselines: dict[int, Runs]) -> list[str]:
    """The table of a stage, and below it why a method does not learn as Dr.GRPO does."""
    lines = [f"## {TITLES[stage]}", ""]
    lines += [
        "| method | seeds | accuracy at first | at the end | difference | entropy | length | step time | learns |"
    ]
    lines += ["|---" * 9 + "|"]
    notes = []
    for name, seeds in found.items():
        updates = next(iter(seeds.values()))["updates"]
        verdict = learns(seeds, baselines[updates])
        lines.append(row(stage, name, seeds, baselines[updates], verdict))
        if stage != "baseline" and verdict != "yes":
            notes.append(f"- **{name}**: {EXPLANATIONS.get(name, 'NOT EXPLAINED YET.')}")
    return [*lines, "", *notes, *([""] if notes else [])]


def row(stage: str, name: str, seeds: Runs, baseline: Runs, verdict: str) -> str:
    is_baseline = stage == "baseline"
    one = next(iter(seeds.values()))
    shown = f"`{name}`" if not is_baseline else BY_UPDATES[one["updates"]]
    options = {} if is_baseline else options_shown(stage, one)
    paired = sorted(seeds.keys() & baseline.keys())
    ends, others = ({seed: accuracy_at_end(of[seed]) for seed in paired} for of in (seeds, baseline))
    cells = [
        shown + (f" {written_options(options)}" if options else "") + updates_shown(one, is_baseline),
        str(len(seeds)),
        f"{fmean(run['accuracy'][0] for run in seeds.values()):.3f}",
        with_interval([accuracy_at_end(run) for run in seeds.values()], ".3f"),
        "" if is_baseline else with_interval([ends[seed] - others[seed] for seed in paired], "+z.3f"),
        f"{fmean(last(run['entropy']) for run in seeds.values()):.3f}",
        f"{fmean(last(run['length']) for run in seeds.values()):.1f}",
        "" if is_baseline else f"{step_time(seeds, baseline, paired):.2f}",
        "" if is_baseline else verdict,
    ]
    return f"| {' | '.join(cells)} |"


def updates_shown(result: Result, is_baseline: bool) -> str:
    return "" if is_baseline or result["updates"] == 1 else f", {result['updates']} updates"


def options_shown(stage: str, result: Result) -> dict[str, Any]:
    """The options of a method that differ from its defaults, and those of the config that it comes with."""
    ((_, options),) = result["options"][stage].items()
    base = result["options"]
    estimator = base["advantage_estimator"]
    own = {} if stage == "advantage_estimator" or estimator in ("dr_grpo", "canon") else {"estimator": estimator}
    return options | own | ({"beta of TRL": base["beta"]} if "beta" in base else {})


def written_options(options: dict[str, Any]) -> str:
    return "(" + ", ".join(f"{name} {value}" for name, value in options.items()) + ")"


def last(values: Sequence[float]) -> float:
    return fmean(values[-LAST:])


def accuracy_at_end(run: Result) -> float:
    return last(run["accuracy"])


def gain(run: Result) -> float:
    return accuracy_at_end(run) - run["accuracy"][0]


def learns(seeds: Runs, baseline: Runs) -> str:
    """Whether the mean gain is at least half of the baseline's over the same seeds."""
    paired = seeds.keys() & baseline.keys()
    gains = [gain(seeds[seed]) for seed in paired]
    if paired and fmean(gains) >= fmean(gain(baseline[seed]) for seed in paired) / 2:
        return "yes"
    low = interval(gains)[1] if gains else math.nan
    return "slowly" if low > 0 else "no"


def step_time(seeds: Runs, baseline: Runs, paired: Sequence[int]) -> float:
    """The mean over seeds of the ratio of CPU times."""
    seconds: Callable[[Result], float] = lambda run: run["cpu_seconds_per_rollout"]  # noqa: E731
    return fmean(seconds(seeds[seed]) / seconds(baseline[seed]) for seed in paired) if paired else math.nan


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean with its 95% interval over seeds; NaN for bounds that are unknown."""
    found = paired_difference(values, [0.0] * len(values))
    return found.mean, found.low, found.high


def with_interval(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    mean, low, high = interval(values)
    return f"{mean:{form}}" if math.isnan(low) else f"{mean:{form}} ± {high - mean:.3f}"

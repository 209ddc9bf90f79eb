"""Write the page of `every_method.py`: what each method learned, from the results of its runs."""

import math
from collections.abc import Sequence
from statistics import fmean
from textwrap import wrap
from typing import Any

from canon_trl.evaluation import paired_difference

Result = dict[str, Any]
Runs = dict[int, Result]  # by seed

BASELINES = {1: "dr_grpo", 4: "dr_grpo_4_updates"}  # by updates per rollout
REPEATED = ("advantage_estimator", "dr_grpo")  # trains as the baseline with one update does
BY_UPDATES = {1: "Dr.GRPO", 4: "Dr.GRPO, 4 updates"}
LAST = 5  # rollouts

COLUMNS = (*("method", "seeds", "accuracy", "difference", "entropy", "length", "step time", "learns"),)
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
EXPLANATIONS: dict[str, str] = {
    "rent": "It rewards certainty, and the reward rises in every run. The policy is most certain in the "
    "written-out style (`verbose`), which is also right most often at first, so accuracy rises to 0.6 within 8 "
    "rollouts. Once nearly all responses have this style, GRPO divides the remaining differences of a few "
    "hundredths of a nat by their deviation, and the policy becomes certain of wrong steps.",
    "em_rl_sequence": "It rewards likely responses, and the reward rises in every run. A bare answer (`direct`) "
    "has few tokens and is likely, right or wrong: two seeds settle on it. One settles on `running`, and gains "
    "until the styles that it no longer uses go wrong.",
    "em_rl_token": "It charges every token for its entropy, and the reward rises in every run. A bare answer "
    "(`direct`) has three tokens, so in the end it is the cheapest, right or wrong.",
    "e3_temperature": "It raises the temperature as training sharpens the policy, so that entropy keeps its "
    "first value and the training responses stay equally random. The policy does learn: at temperature 1 it is right "
    "on {held_out} of 512 held-out prompts.",
}

# What else the tables do not say.
REMARKS: dict[str, str] = {
    "dr_grpo": "This repeats the baseline, so a step time other than 1.00 is noise.",
    "rloo": "Its advantages are Dr.GRPO's times 8/7, which Adam cancels.",
    "stcr": "With the authors' base its weights differ from GRPO's by less than 0.001 at these lengths.",
    "tea": "The default scale, 10, suits thousands of tokens. Here it outweighs the advantages: with seed 1, "
    "entropy rises to 2.3 nats and no response is right.",
    "ter": "It keeps the entropy above Dr.GRPO's, which costs accuracy in sampled responses.",
}

INTRODUCTION = """# What every method learns

Each method of every stage trains the embedded model on `arithmetic`: {rollouts} rollouts of 8 prompts with 8
responses, learning rate 4e-4, seeds {seeds}. The page shows whether a method learns, so that a wrong sign or scale
cannot hide. **It does not show which method is better**: we tuned nothing, the task is easy, and three seeds cannot
separate similar methods. [Comparisons](comparisons.md) use more seeds and longer runs.

<!-- not run: {minutes} minutes of training on one core -->
```bash
OMP_NUM_THREADS=1 python benchmarks/every_method.py    # the missing runs, then this page
python benchmarks/every_method.py --jobs 0             # only this page
```

`benchmarks/results/every_method` has a file per run with its options and numbers, made with
{versions}.

- **Accuracy**, **entropy** (nats per token) and **length** (tokens) are means over the last {last} training rollouts.
  All methods start with the same rollouts of the untrained model: {accuracy}, {entropy} and {length}.
- **Difference**: the accuracy minus Dr.GRPO's, with the same seeds and number of updates per rollout.
- **Step time**: CPU time per rollout with its updates, divided by Dr.GRPO's with the same seed: the mean of the
  baseline and the row `dr_grpo`, which repeats it; with 4 updates, only the baseline. All rows share these few
  runs and their noise{noise}, so compare rows with each other rather than with 1. The time
  includes the method's effect on the length of responses. [Speed](speed.md) has the cost at equal lengths.
- **Learns**: yes if the gain in accuracy is at least half of Dr.GRPO's; slowly if it is less but its interval is above
  0; otherwise no.
- Numbers are means over seeds ± half of the 95% interval (Student), which holds for each number separately.

A method acts on Dr.GRPO's advantages unless it replaces them. Policy rewards replace the label, which is only logged.
Methods that act only once the policy has moved away from the rollout train with 4 updates per rollout, each on
a quarter of its responses and at half the learning rate. Options are defaults except for those shown. A*-PO needs
values; [comparisons](comparisons.md) compare it with Dr.GRPO.
"""


def write_report(results: list[Result], *, stages: Sequence[str]) -> str:
    """Return the page."""
    runs = by_method(results)
    baselines = {updates: runs.get(("baseline", name), {}) for updates, name in BASELINES.items()}
    if not baselines[1]:
        raise ValueError("no run of Dr.GRPO has finished, so there is nothing to compare with")
    repeated = runs.get(REPEATED, {})
    lines = [introduction(baselines[1], repeated, results)]
    seconds = {
        updates: seconds_by_seed(baseline, repeated if updates == 1 else {}) for updates, baseline in baselines.items()
    }
    for stage in ("baseline", *stages):
        found = {name: seeds for (of, name), seeds in runs.items() if of == stage}
        if found:
            lines += section(stage, found, baselines, seconds)
    return "\n".join(lines)


def by_method(results: list[Result]) -> dict[tuple[str, str], Runs]:
    """Return the results by stage and method, then by seed."""
    found: dict[tuple[str, str], Runs] = {}
    for result in results:
        found.setdefault((result["stage"], result["method"]), {})[result["seed"]] = result
    return found


def seconds_by_seed(baseline: Runs, repeated: Runs) -> dict[int, float]:
    """CPU seconds per rollout by seed, averaged over the baseline and its repetition."""
    return {
        seed: fmean(of[seed]["cpu_seconds_per_rollout"] for of in (baseline, repeated) if seed in of)
        for seed in baseline
    }


def noise_of(baseline: Runs, repeated: Runs) -> str:
    """The largest difference between the step times of a baseline and its repetition, in words."""
    pairs = [
        sorted(of[seed]["cpu_seconds_per_rollout"] for of in (baseline, repeated))
        for seed in repeated.keys() & baseline
    ]
    return f" (two equal runs differ by up to {max(high / low for low, high in pairs) - 1:.0%})" if pairs else ""


def introduction(baseline: Runs, repeated: Runs, results: list[Result]) -> str:
    one = next(iter(baseline.values()))
    seconds = sum(len(result["accuracy"]) * result["cpu_seconds_per_rollout"] for result in results)
    return INTRODUCTION.format(
        rollouts=len(one["accuracy"]),
        seeds=", ".join(str(seed) for seed in sorted(baseline)),
        last=LAST,
        noise=noise_of(baseline, repeated),
        minutes=f"{seconds / 60:.0f}",
        accuracy=with_interval([run["accuracy"][0] for run in baseline.values()], ".3f"),
        entropy=with_interval([run["entropy"][0] for run in baseline.values()], ".3f"),
        length=with_interval([run["length"][0] for run in baseline.values()], ".1f"),
        versions=", ".join(f"{package} {number}" for package, number in one["versions"].items()),
    )


def section(
    stage: str, found: dict[str, Runs], baselines: dict[int, Runs], seconds: dict[int, dict[int, float]]
) -> list[str]:
    """The table of a stage, and below it why a method does not learn as Dr.GRPO does."""
    lines = [f"## {TITLES[stage]}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    notes = []
    for name, seeds in found.items():
        updates = next(iter(seeds.values()))["updates"]
        verdict = learns(seeds, baselines[updates])
        lines.append(row(stage, name, seeds, baselines[updates], seconds[updates], verdict))
        if stage != "baseline" and verdict != "yes":
            notes += bullet(name, explanation(name, seeds))
        elif name in REMARKS and stage != "baseline":
            notes += bullet(name, REMARKS[name])
    notes += style_table(
        {name: seeds for name, seeds in found.items() if any("styles" in run for run in seeds.values())}
    )
    return [*lines, "", *notes, *([""] if notes else [])]


def bullet(name: str, text: str) -> list[str]:
    return wrap(f"- `{name}`: {text}", width=120, subsequent_indent="  ")


def explanation(name: str, seeds: Runs) -> str:
    """Why a method gains less than half of what Dr.GRPO gains."""
    key = "held_out_accuracy_at_temperature_1"
    held_out = [run[key] for run in seeds.values() if key in run]
    return EXPLANATIONS.get(name, "NOT EXPLAINED YET.").format(held_out=with_interval(held_out, ".3f"))


def style_table(found: dict[str, Runs]) -> list[str]:
    """What methods without labels make more likely: styles of the first and of the last rollouts."""
    if not found:
        return []
    styles = [*next(iter(next(iter(found.values())).values()))["styles"]]
    lines = [
        "",
        "The reward in the first and the last rollout, and the share of each style of solution in the first",
        f"and the last {LAST} rollouts, with its accuracy in brackets; means over seeds:",
        "",
    ]
    lines += [f"| method | reward | {' | '.join(styles)} |", "|---" * (2 + len(styles)) + "|"]
    for name, seeds in found.items():
        own = [run["logged"][f"rewards/{name}/mean"] for run in seeds.values()]
        cells = [" → ".join(f"{fmean(each[moment] for each in own):.2f}" for moment in ("first", "last"))]
        cells += [style_cell([run["styles"][style] for run in seeds.values()]) for style in styles]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def style_cell(runs: list[dict[str, list[float | None]]]) -> str:
    moments = []
    for moment in (0, 1):
        share = fmean(run["share"][moment] or 0.0 for run in runs)
        scored = [accuracy for run in runs if (accuracy := run["accuracy"][moment]) is not None]
        moments.append(f"{share:.2f} ({fmean(scored):.2f})" if scored else f"{share:.2f}")
    return " → ".join(moments)


def row(stage: str, name: str, seeds: Runs, baseline: Runs, seconds: dict[int, float], verdict: str) -> str:
    is_baseline = stage == "baseline"
    one = next(iter(seeds.values()))
    shown = f"`{name}`" if not is_baseline else BY_UPDATES[one["updates"]]
    options = {} if is_baseline else options_shown(stage, one)
    paired = sorted(seeds.keys() & baseline.keys())
    ends, others = ({seed: accuracy_at_end(of[seed]) for seed in paired} for of in (seeds, baseline))
    cells = [
        shown + (f" {written_options(options)}" if options else "") + updates_shown(one, is_baseline),
        str(len(seeds)),
        with_interval([accuracy_at_end(run) for run in seeds.values()], ".3f"),
        "" if is_baseline else with_interval([ends[seed] - others[seed] for seed in paired], "+z.3f"),
        with_interval([last(run["entropy"]) for run in seeds.values()], ".3f"),
        with_interval([last(run["length"]) for run in seeds.values()], ".1f"),
        "" if is_baseline else with_interval([step_time(seeds[seed], seconds[seed]) for seed in paired], ".2f"),
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


def step_time(run: Result, baseline: float) -> float:
    return run["cpu_seconds_per_rollout"] / baseline


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean with its 95% interval over seeds; NaN for bounds that are unknown."""
    found = paired_difference(values, [0.0] * len(values))
    return found.mean, found.low, found.high


def with_interval(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    mean, low, high = interval(values)
    return f"{mean:{form}}" if math.isnan(low) else f"{mean:{form}} ± {high - mean:{form.lstrip('+z')}}"

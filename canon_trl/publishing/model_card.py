"""The model card: how the model was trained."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not marked as exported
from trl import GRPOConfig

from canon_trl.config.run import decides_what_is_learnt
from canon_trl.paper import Paper
from canon_trl.publishing.citation import package_citation

TASK = "text-generation"
CITATIONS = "## Citations"
HELD_OUT = "held-out prompts"


@dataclass(frozen=True)
class TrainingFacts:
    """The facts that the card adds to TRL's.

    Args:
        method: name of the method.
        options: options of the method and of training, by name; `None` values are left out.
        base_model, data: text for readers.
        num_processes: number of training processes.
        results: evaluation results.
        combined_with: papers of the methods that were combined with this one, by method.
        adapter: kind of adapter, such as `"lora"`; `None` for full weights.
        curves: whether `curves.png` and `metrics.csv` are next to the card.
    """

    method: str
    options: Mapping[str, Any]
    base_model: str
    data: str
    num_processes: int
    results: Sequence[EvalResult] = ()
    combined_with: Mapping[str, Paper] = field(default_factory=dict)
    adapter: str | None = None
    curves: bool = False


def complete_card(path: Path, facts: TrainingFacts) -> None:
    """Add the facts to the card that TRL wrote."""
    card = ModelCard.load(path)
    body, heading, citations = card.text.partition(CITATIONS)
    # TRL writes None for a base model in a folder, and for a model without a name on the Hub.
    body = body.replace("[None](https://huggingface.co/None)", facts.base_model)
    body = body.replace('model="None"', f'model="{path.parent.name}"')
    citations_of_trl = f"{heading}{citations}".rstrip()
    named: dict[str, list[str]] = {}  # several methods may come from one paper
    for name, paper in facts.combined_with.items():
        if paper.citation not in citations_of_trl:
            named.setdefault(paper.citation, []).append(name)
    citations_to_add = [cite(" and ".join(names), entry) for entry, names in named.items()]
    citations_to_add.append(cite("canon_trl", package_citation()))
    card.text = "\n\n".join([body.rstrip(), *sections(facts), citations_of_trl, *citations_to_add, ""])
    card.data.pop("licence")  # TRL's placeholder
    if facts.adapter is not None:
        card.data.library_name = "peft"
        card.data.tags = [*card.data.tags, facts.adapter]
    card.data.pipeline_tag = TASK
    if facts.results:
        add_results(card, facts.results)
    card.save(path)


def cite(name: str, entry: str) -> str:
    """Return the lines of a card that ask to cite a BibTeX entry."""
    return f"Cite {name} as:\n\n```bibtex\n{entry}\n```"


def sections(facts: TrainingFacts) -> list[str]:
    combined_with = [f"[{name}]({paper.url})" for name, paper in facts.combined_with.items()]
    processes = "one process" if facts.num_processes == 1 else f"{facts.num_processes} processes"
    rows = [f"| `{name}` | {cell(value)} |" for name, value in facts.options.items() if value is not None]
    written = [
        f"## Method\n\n{facts.method}{' with ' if combined_with else ''}{' and '.join(combined_with)}, in "
        f"canon_trl {version('canon-trl')}, on {processes}.\n\n- Base model: {facts.base_model}\n- Data: {facts.data}",
        "The options of the method, and the training options that differ from TRL's defaults:",
        "\n".join(["| option | value |", "|---|---|", *rows]),
    ]
    if facts.curves:
        written.append("## Curves\n\n![Learning curves](curves.png)\n\nThe numbers are in `metrics.csv`.")
    return written


def cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return f"`{text.replace('|', chr(92) + '|')}`"


def own_options(args: GRPOConfig) -> dict[str, Any]:
    """Return the options that TRL's config does not have."""
    of_trl = {option.name for option in dataclasses.fields(GRPOConfig)}
    return {o.name: getattr(args, o.name) for o in dataclasses.fields(args) if o.name not in of_trl}


def changed_options(args: GRPOConfig) -> dict[str, Any]:
    """Return TRL's options that affect learning and differ from TRL's defaults."""
    changed = {}
    for option in dataclasses.fields(GRPOConfig):
        made = option.default_factory
        default = made() if callable(made) else option.default
        value = getattr(args, option.name)
        if decides_what_is_learnt(option.name) and value != default:
            changed[option.name] = value
    return changed


def is_on_hub(name: str) -> bool:
    """Whether the name is a valid repository name and not that of a local folder or file."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def describe_model(name: str) -> str:
    """Describe the base model: a link to the Hub, or the name of its folder without the path."""
    if name and is_on_hub(name):
        return f"[{name}](https://huggingface.co/{name})"
    return f"`{Path(name).name}`" if name else "a model without a name"


def describe_data(name: str | None, data: Any) -> str:
    """Describe a dataset in the same way, with its number of prompts if it is known."""
    if name is None:
        described = "not named"
    elif is_on_hub(name):
        described = f"[{name}](https://huggingface.co/datasets/{name})"
    else:
        described = Path(name).name
    return f"{described}, {len(data)} prompts" if isinstance(data, Dataset) else described


def logged_results(log_history: Iterable[Mapping[str, Any]], accuracy_reward: str, eval_data: Any) -> list[EvalResult]:
    """Return the last results in a run's log: the trainer's on each evaluation set, and `EvaluationCallback`'s.

    Results that are not finite are left out, such as the accuracy where no response was scored.

    Args:
        log_history: log of the trainer's state.
        accuracy_reward: name of the reward function that measures accuracy.
        eval_data: the trainer's held-out prompts, or several sets by name.
    """
    several = list(eval_data) if isinstance(eval_data, dict) else []
    accuracy = f"eval_rewards/{accuracy_reward}/mean"
    found: dict[str, EvalResult] = {}
    for entry in log_history:
        at = f"after {entry.get('step')} steps"
        if (value := entry.get(accuracy)) is not None and math.isfinite(value):
            data = next((f"held-out prompts {name}" for name in several if f"eval_{name}_loss" in entry), HELD_OUT)
            found[data] = result(data, "accuracy", f"{accuracy_reward}, mean over responses, {at}", value)
        for key, value in entry.items():
            if key.startswith("evaluation/"):
                metric = key.removeprefix("evaluation/")
                found[key] = result("prompts of EvaluationCallback", metric, f"{metric}, {at}", value)
    return list(found.values())


def summary_results(summary: Mapping[str, Mapping[str, Any]]) -> list[EvalResult]:
    """Return the accuracies in a `summary.json` of the command `evaluate`, with their intervals in the names."""
    found = []
    for benchmark, numbers in summary.items():
        settings, n = numbers["settings"], numbers["num_samples"]
        data, split = settings["data"], settings.get("dataset_test_split")
        estimates = {f"avg@{n}": {"mean": numbers["avg"], **numbers["avg_interval"]}}
        for kind in ("pass", "majority"):
            estimates |= {f"{kind}@{k}": each for k, each in (numbers[f"{kind}_at_k"] or {}).items()}
        for metric, estimate in estimates.items():
            name = f"{metric}, {numbers['num_prompts']} prompts, temperature {settings['temperature']}"
            if estimate["low"] is not None:
                name += f", {settings['confidence']:.0%} interval {estimate['low']:.3f} to {estimate['high']:.3f}"
            identified = data if split is not None and is_on_hub(data) else benchmark
            found.append(result(benchmark, metric, name, estimate["mean"], identified=identified, split=split))
    return found


def result(
    described: str, metric: str, name: str, value: float, *, identified: str | None = None, split: str | None = None
) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        dataset_type=identified or described,
        dataset_name=described,
        dataset_split=split,
        metric_type=metric,
        metric_name=name,
        metric_value=round(value, 6),
    )


def add_results(card: ModelCard, results: Sequence[EvalResult]) -> None:
    """Put results into the card's metadata; they replace those of the same metric on the same data."""

    def key(result: EvalResult) -> tuple:
        return result.unique_identifier, result.metric_type

    assert isinstance(card.data, ModelCardData)
    new = {key(result) for result in results}
    kept = [result for result in card.data.eval_results or [] if key(result) not in new]
    card.data.eval_results = [*kept, *results]

"""The model card: how a model came about, for whoever finds it."""

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
    """What the card says beside TRL's.

    Args:
        method: its name.
        options: of the method and of training, by name; those that are `None` are left out.
        base_model, data: as readers are to see them.
        num_processes: that trained.
        results: of evaluations.
        beside: what the method was combined with, and its paper.
        adapter: kind of adapter, such as `"lora"`, where the weights are one; else `None`.
        curves: whether `curves.png` and `metrics.csv` lie beside the card.
    """

    method: str
    options: Mapping[str, Any]
    base_model: str
    data: str
    num_processes: int
    results: Sequence[EvalResult] = ()
    beside: Mapping[str, Paper] = field(default_factory=dict)
    adapter: str | None = None
    curves: bool = False


def complete_card(path: Path, facts: TrainingFacts) -> None:
    """Add the facts to the card that TRL has written.

    Raises:
        ValueError: TRL's card has no section for citations.
    """
    card = ModelCard.load(path)
    body, heading, citations = card.text.partition(CITATIONS)
    if not heading:
        raise ValueError(f"TRL's model card has no section {CITATIONS!r}, before which the method would be described")
    # Where the base model is a folder, or the model has no name on the Hub yet, TRL writes None.
    body = body.replace("[None](https://huggingface.co/None)", facts.base_model)
    body = body.replace('model="None"', f'model="{path.parent.name}"')
    citing = [cite(name, paper.citation) for name, paper in facts.beside.items()]
    citing.append(cite("canon_trl", package_citation()))
    card.text = "\n\n".join([body.rstrip(), *sections(facts), f"{heading}{citations}".rstrip(), *citing, ""])
    card.data.pop("licence")  # a placeholder of TRL's, no license
    if facts.adapter is not None:
        card.data.library_name = "peft"
        card.data.tags = [*card.data.tags, facts.adapter]
    card.data.pipeline_tag = TASK
    if facts.results:
        add_results(card, facts.results)
    card.save(path)


def cite(name: str, entry: str) -> str:
    """The lines of a card that hand a BibTeX entry to whoever cites."""
    return f"Cite {name} as:\n\n```bibtex\n{entry}\n```"


def sections(facts: TrainingFacts) -> list[str]:
    beside = [f"[{name}]({paper.url})" for name, paper in facts.beside.items()]
    processes = "one process" if facts.num_processes == 1 else f"{facts.num_processes} processes"
    rows = [f"| `{name}` | {cell(value)} |" for name, value in facts.options.items() if value is not None]
    written = [
        f"## Method\n\n{facts.method}{' with ' if beside else ''}{' and '.join(beside)}, in canon_trl "
        f"{version('canon-trl')}, on {processes}.\n\n- Base model: {facts.base_model}\n- Data: {facts.data}",
        "The method's options, and those of training that are not TRL's defaults:",
        "\n".join(["| option | value |", "|---|---|", *rows]),
    ]
    if facts.curves:
        written.append("## Curves\n\n![Learning curves](curves.png)\n\nThe numbers are in `metrics.csv`.")
    return written


def cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return f"`{text.replace('|', chr(92) + '|')}`"


def own_options(args: GRPOConfig) -> dict[str, Any]:
    """The options that TRL's config does not have."""
    of_trl = {option.name for option in dataclasses.fields(GRPOConfig)}
    return {o.name: getattr(args, o.name) for o in dataclasses.fields(args) if o.name not in of_trl}


def changed_options(args: GRPOConfig) -> dict[str, Any]:
    """TRL's options that decide what is learnt and differ from its defaults."""
    changed = {}
    for option in dataclasses.fields(GRPOConfig):
        made = option.default_factory
        default = made() if callable(made) else option.default
        value = getattr(args, option.name)
        if decides_what_is_learnt(option.name) and value != default:
            changed[option.name] = value
    return changed


def is_on_hub(name: str) -> bool:
    """Whether it can be the name of a repository; what exists here is a folder or file."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def describe_model(name: str) -> str:
    """The base model for readers: a link to the Hub, or the name of the folder without the way to it."""
    if name and is_on_hub(name):
        return f"[{name}](https://huggingface.co/{name})"
    return f"`{Path(name).name}`" if name else "a model without a name"


def describe_data(name: str | None, data: Any) -> str:
    """The same for a dataset, with its number of prompts where it has one."""
    if name is None:
        described = "not named"
    elif is_on_hub(name):
        described = f"[{name}](https://huggingface.co/datasets/{name})"
    else:
        described = Path(name).name
    return f"{described}, {len(data)} prompts" if isinstance(data, Dataset) else described


def logged_results(log_history: Iterable[Mapping[str, Any]], accuracy_reward: str, eval_data: Any) -> list[EvalResult]:
    """The last evaluations of a run's log: of the trainer, on each of its sets, and of `EvaluationCallback`.

    What is not a number is left out, such as the accuracy where no response could be scored.

    Args:
        log_history: of the trainer's state.
        accuracy_reward: name of the reward function that measures accuracy.
        eval_data: the trainer's held-out prompts, or several sets of them by name.
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
    """Accuracies of what `examples/evaluate.py` writes as `summary.json`, with their intervals in the names."""
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
    """Put the results into the card's metadata, in the place of those of the same metric on the same data."""

    def measured(each: EvalResult) -> tuple:
        return each.unique_identifier, each.metric_type

    assert isinstance(card.data, ModelCardData)
    new = {measured(each) for each in results}
    kept = [each for each in card.data.eval_results or [] if measured(each) not in new]
    card.data.eval_results = [*kept, *results]

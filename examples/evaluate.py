"""Evaluate a model on one benchmark or several, with n responses per prompt and intervals for the numbers.

    accelerate launch examples/evaluate.py                                             # embedded task, offline
    accelerate launch examples/evaluate.py --config evaluate_math --model_name_or_path MODEL

Every benchmark gets a folder with one record per prompt in `records.parquet`; `summary.json` and `summary.md` contain
the numbers. A killed run resumes where it stopped. docs/evaluation.md explains the numbers.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import HfApi, ModelCard
from recipe import (
    RecipeArguments,
    check,
    check_nothing_ignored,
    load_held_out,
    name_model,
    parse_unchecked,
    reward_functions,
)
from sampling import (
    CARD,
    SamplingArguments,
    SamplingTask,
    check_folder,
    check_options,
    check_wording,
    fingerprints,
    leave_processes,
    load_tokenizer,
    sample_missing,
    sampling_settings,
    start_processes,
)
from trl import ModelConfig

from canon_trl.evaluation.answers import math_answer
from canon_trl.evaluation.responses import COLUMNS, ResponseRecorder, is_right, summarise
from canon_trl.imports import is_import_path, load_function
from canon_trl.publishing.hub import explained_failure, upload_command
from canon_trl.publishing.model_card import add_results, summary_results
from canon_trl.sampling.chunks import ChunkLog, atomic_write, collect_records
from canon_trl.sampling.scoring import Scorer
from canon_trl.tasks import TASKS

EXTRACTORS = {"math_verify": math_answer}
# Options for training data, which an evaluation does not read.
TRAINING_OPTIONS = (
    *("dataset_train_split", "dataset_streaming", "task_train_prompts", "ignore_bias_buffers", "reward_flip"),
)
ENTROPY = {
    False: "mean entropy of the distributions that tokens were drawn from, exact",
    True: "mean surprisal of the sampled tokens, an estimate of the entropy",
}


@dataclass
class EvaluationArguments(SamplingArguments):
    """What to measure, and where to write it."""

    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder for records and summaries."})
    pass_at_k: list[int] | None = field(
        default=None, metadata={"help": "The k of pass@k in addition to 1. Default: num_samples."}
    )
    majority_at_k: list[int] | None = field(
        default=None,
        metadata={"help": "The k of majority@k, which needs an answer extractor. Default: pass_at_k except 1."},
    )
    answer_extractor: str | None = field(
        default=None,
        metadata={
            "help": f"What finds the answer in a response: {', '.join(EXTRACTORS)} or an import path "
            "`package.module:function`; an embedded task has its own. Without one there is no majority vote."
        },
    )
    threshold: float = field(default=1.0, metadata={"help": "Minimum weighted reward of a right response."})
    confidence: float = field(default=0.95, metadata={"help": "Confidence level of the intervals over prompts."})
    save_responses: bool = field(default=False, metadata={"help": "Whether the records contain the responses' text."})
    update_card: bool = field(
        default=False,
        metadata={
            "help": "Whether to write the accuracies into the metadata of the model's card, local or on the Hub."
        },
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "Jinja file with a chat template that replaces the tokenizer's."}
    )
    benchmarks: list[dict] | None = field(
        default=None,
        metadata={"help": "In YAML: several benchmarks, each with a `name` and the options that it overrides."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pass_at_k", "majority_at_k"):
            if wrong := [k for k in getattr(self, name) or [] if not 1 <= k <= self.num_samples]:
                raise ValueError(f"{name} has {wrong}; each must lie between 1 and num_samples={self.num_samples}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence!r} must lie in (0, 1)")

    @property
    def pass_ks(self) -> list[int]:
        return sorted({1, *(self.pass_at_k or [self.num_samples])})

    @property
    def majority_ks(self) -> list[int]:
        # A majority of one voter is avg@n.
        return sorted(set(self.majority_at_k or self.pass_ks[1:]))


# Options of the whole run, which cannot differ between benchmarks.
RUN_OPTIONS = (
    "output_dir",
    "benchmarks",
    "use_vllm",
    "vllm_kwargs",
    "update_card",
    "chat_template_path",
    *TRAINING_OPTIONS,
)


@dataclass
class Benchmark:
    """A named set of prompts with its options."""

    name: str
    recipe: RecipeArguments
    options: EvaluationArguments

    @property
    def answer_of(self) -> Callable[[str], str | None] | None:
        name = self.options.answer_extractor
        if name is None:
            return TASKS[self.recipe.task].answer_of if self.recipe.task else None
        if name == "math_verify" and find_spec("math_verify") is None:
            raise ImportError(f"answer_extractor={name!r} needs math-verify; install canon-trl[math]")
        if name in EXTRACTORS:
            return EXTRACTORS[name]
        if is_import_path(name):
            return load_function(name, field="answer_extractor")
        raise ValueError(
            f"answer_extractor={name!r} must be one of {list(EXTRACTORS)} or an import path 'package.module:function'"
        )


def read_benchmarks(argv: list[str]) -> tuple[list[Benchmark], EvaluationArguments, ModelConfig]:
    """The benchmarks from flags and YAML, the options that they share, and the model, all checked."""
    recipe, options, model = parse_unchecked(argv, EvaluationArguments, embedded="arithmetic_evaluate")
    for option in fields(RecipeArguments):
        value = getattr(recipe, option.name)
        if option.name in TRAINING_OPTIONS and value != option.default:
            raise ValueError(f"{option.name}={value!r} would be ignored: an evaluation does not train")
    if options.benchmarks is None:
        check_nothing_ignored(recipe)
        name = recipe.task or Path(recipe.held_out[0] or "").stem
        benchmarks = [Benchmark(name, recipe, options)]
    else:
        if recipe.task is not None or recipe.dataset_name is not None:
            raise ValueError(
                f"task={recipe.task!r} and dataset_name={recipe.dataset_name!r}: with benchmarks, each entry names "
                "its own data"
            )
        benchmarks = [read_entry(entry, recipe, options) for entry in options.benchmarks]
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) != len(names):
        raise ValueError(f"benchmarks have the names {names}; the names must be different")
    for benchmark in benchmarks:
        check(benchmark.recipe, model)
        if benchmark.answer_of is None and benchmark.options.majority_at_k:
            raise ValueError(
                f"{benchmark.name}: majority_at_k={benchmark.options.majority_at_k} needs an answer_extractor"
            )
    if len({name_model(benchmark.recipe, model) for benchmark in benchmarks}) > 1:
        raise ValueError("model_name_or_path is missing, and the benchmarks' embedded tasks have different models")
    return benchmarks, options, model


def read_entry(entry: dict[str, Any], recipe: RecipeArguments, options: EvaluationArguments) -> Benchmark:
    """A benchmark from an entry in `benchmarks` and the options that all of them share."""
    own = {
        kind: {each.name for each in fields(kind)} - {*RUN_OPTIONS} for kind in (RecipeArguments, EvaluationArguments)
    }
    name = entry.get("name")
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise ValueError(f"benchmarks has an entry with name={name!r}; it must be the name of a folder")
    if unknown := sorted(entry.keys() - {"name"} - set.union(*own.values())):
        raise ValueError(
            f"benchmarks: {name} has the unknown options {unknown}; known: {sorted(set.union(*own.values()))}"
        )
    changes = {kind: {key: value for key, value in entry.items() if key in own[kind]} for kind in own}
    return Benchmark(
        name,
        replace(recipe, **changes[RecipeArguments]),
        replace(options, benchmarks=None, **changes[EvaluationArguments]),
    )


def load_prompts(benchmark: Benchmark, tokenizer: Any) -> Dataset:
    data = load_held_out(benchmark.recipe)
    if taken := sorted({*COLUMNS, "correct"} & {*data.column_names}):
        raise ValueError(f"{benchmark.name}: the data has columns {taken}, which the records use; rename them")
    check_wording(data, benchmark.options, tokenizer, benchmark.name)
    return data


def main(argv: list[str]) -> None:
    benchmarks, options, model = read_benchmarks(argv)
    state = start_processes()
    check_options(options, model, state)
    folder = Path(options.output_dir)
    check_folder(folder, "evaluate.py")
    name = name_model(benchmarks[0].recipe, model)
    if options.update_card:
        load_card(name)  # fails before sampling if the card is missing
    tokenizer = load_tokenizer(name, model)
    if options.chat_template_path is not None:
        tokenizer.chat_template = Path(options.chat_template_path).read_text()

    settings, tasks = [], []
    for benchmark in benchmarks:
        data = load_prompts(benchmark, tokenizer)
        own = benchmark.options
        functions = reward_functions(benchmark.recipe, own.max_completion_length)
        score = Scorer(functions, tokenizer, own.reward_weights, own.reward_time_limit, own.chat_template_kwargs)
        settings.append(
            sampling_settings(benchmark.recipe, benchmark.options, model, name)
            | {key: getattr(benchmark.options, key) for key in ("answer_extractor", "save_responses")}
            | {"chat_template": tokenizer.chat_template}
            | {"data": benchmark.recipe.task or benchmark.recipe.held_out[0]}
        )
        log = ChunkLog(
            folder / benchmark.name / ".progress",
            settings[-1] | fingerprints(name, data),
            rank=state.process_index,
        )
        record = ResponseRecorder(score, benchmark.answer_of, benchmark.options.save_responses)
        tasks.append(SamplingTask(benchmark.name, data, benchmark.options, record, log))
    sample_missing(tasks, model, name, tokenizer, state, entropies=True)
    if state.is_main_process:
        summary = {}
        for benchmark, task, given in zip(benchmarks, tasks, settings, strict=True):
            records = collect_records(task.data, task.log)
            write_records(task.data, records, folder / task.name / "records.parquet", benchmark.options.threshold)
            summary[task.name] = describe(benchmark, records) | {"settings": given | data_settings(benchmark)}
        write_summary(folder, summary)
        if options.update_card:
            update_card(name, summary, folder)
    state.wait_for_everyone()


def data_settings(benchmark: Benchmark) -> dict[str, Any]:
    """The settings of the data and the numbers, for readers of the summary."""
    names = ("dataset_test_split", "prompt_column", "answer_column", "answer_template")
    of_dataset = {key: getattr(benchmark.recipe, key) for key in (*names, "system_prompt")}
    of_dataset |= {"dataset_config": benchmark.recipe.held_out[1]}
    shared = {key: getattr(benchmark.options, key) for key in ("threshold", "confidence")}
    return shared if benchmark.recipe.task else shared | of_dataset


def describe(benchmark: Benchmark, records: list[dict[str, Any]]) -> dict[str, Any]:
    options = benchmark.options
    numbers = summarise(
        records,
        pass_ks=options.pass_ks,
        majority_ks=options.majority_ks,
        threshold=options.threshold,
        confidence=options.confidence,
    )
    return numbers | {"entropy_is": ENTROPY[options.use_vllm]}


def write_records(data: Dataset, records: list[dict[str, Any]], path: Path, threshold: float) -> None:
    for column in COLUMNS:
        if column in records[0]:
            data = data.add_column(column, [record[column] for record in records])
        if column == "rewards":
            data = data.add_column("correct", [is_right(each["rewards"], threshold).tolist() for each in records])
    with atomic_write(path) as file:
        data.to_parquet(file)


def write_summary(folder: Path, summary: dict[str, dict[str, Any]]) -> None:
    table = as_table(summary)
    for name, text in {"summary.json": json.dumps(summary, indent=1, allow_nan=False), "summary.md": table}.items():
        with atomic_write(folder / name) as file:
            file.write_text(text + "\n")
    print(f"{table}\n\n{folder / 'summary.json'}, {folder / 'summary.md'} and a records.parquet per benchmark")


def load_card(model: str) -> ModelCard:
    """The card of a model in a folder or on the Hub."""
    folder = Path(model)
    if folder.is_dir() and not (folder / CARD).is_file():
        raise ValueError(f"update_card=True: {model} has no {CARD} to write the accuracies into")
    return ModelCard.load(folder / CARD if folder.is_dir() else model)


def update_card(model: str, summary: dict[str, dict[str, Any]], folder: Path) -> None:
    card = load_card(model)
    add_results(card, summary_results(summary))
    if Path(model).is_dir():
        with atomic_write(Path(model) / CARD) as file:
            card.save(file)
        return
    path = folder / CARD
    card.save(path)
    with explained_failure(path, upload_command(model, path, to=CARD)):
        HfApi().upload_file(path_or_fileobj=path, path_in_repo=CARD, repo_id=model)


def as_table(summary: dict[str, dict[str, Any]]) -> str:
    """The summary for readers: one row per benchmark, and notes below."""
    rows = {name: shown(numbers) for name, numbers in summary.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| benchmark | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(row.get(column, "") for column in columns) + " |" for name, row in rows.items()
    ]
    for name, numbers in summary.items():
        lines += ["", f"**{name}**: {numbers['settings']['model']}; {'; '.join(notes(numbers))}."]
    return "\n".join(lines)


def shown(numbers: dict[str, Any]) -> dict[str, str]:
    def interval(low: float | None, high: float | None) -> str:
        return "" if low is None else f" ({low:.3f} to {high:.3f})"

    def number(value: float | None, digits: int = 1) -> str:
        return "none" if value is None else f"{value:.{digits}f}"

    row = {"prompts": str(numbers["num_prompts"]), "n": str(numbers["num_samples"])}
    row["avg@n"] = f"{numbers['avg']:.3f}" + interval(**numbers["avg_interval"])
    for kind in ("pass", "majority"):
        for k, estimate in (numbers[f"{kind}_at_k"] or {}).items():
            row[f"{kind}@{k}"] = f"{estimate['mean']:.3f}" + interval(estimate["low"], estimate["high"])
    for kind in ("right", "wrong"):
        mean, median = numbers[f"length_{kind}"], numbers[f"median_length_{kind}"]
        row[f"tokens per {kind} response, mean (median)"] = f"{number(mean)} ({number(median)})"
    row["truncated"] = number(numbers["truncated"], 3)
    row["entropy (nats)"] = number(numbers["entropy"], 4)
    row["tokens per right answer"] = number(numbers["tokens_per_right_answer"])
    return row


def notes(numbers: dict[str, Any]) -> list[str]:
    settings = numbers["settings"]
    lines = [
        f"temperature {settings['temperature']}, top_p {settings['top_p']}, top_k {settings['top_k']}, at most "
        f"{settings['max_completion_length']} tokens, seed {settings['seed']}",
        f"{settings['confidence']:.0%} intervals over prompts in brackets",
        f"entropy: {numbers['entropy_is']}",
    ]
    estimates = [numbers["avg_interval"], *numbers["pass_at_k"].values(), *(numbers["majority_at_k"] or {}).values()]
    if any(estimate["low"] is None for estimate in estimates):
        lines.append("no interval if all prompts have the same share, neither 0 nor 1: there is no spread to resample")
    if numbers["majority_at_k"] is None:
        lines.append("no majority vote: no answer_extractor was given")
    for kind in ("prompts", "responses"):
        if numbers[f"unscored_{kind}"]:
            effect = {"prompts": "left out: no response could be scored", "responses": "not scored, so not right"}[
                kind
            ]
            lines.append(f"{numbers[f'unscored_{kind}']} {kind} {effect}")
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
    leave_processes()

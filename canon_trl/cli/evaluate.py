"""Evaluate a model on one benchmark or several, with n responses per prompt and intervals for the numbers.

    canon-trl evaluate                                                                       # embedded task, offline
    accelerate launch -m canon_trl evaluate --config evaluate_math --model_name_or_path MODEL

Every benchmark gets a folder with one record per prompt in `records.parquet`; `summary.json` and `summary.md` contain
the numbers. A killed run resumes where it stopped. docs/evaluation.md explains the numbers.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import HfApi, ModelCard

from canon_trl.cli.benchmarks import Benchmark, read_benchmarks
from canon_trl.cli.data import load_held_out
from canon_trl.cli.rewards import reward_functions
from canon_trl.cli.running import name_model
from canon_trl.cli.sampling import (
    CARD,
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
from canon_trl.cli.summaries import as_table
from canon_trl.evaluation.responses import COLUMNS, ResponseRecorder, is_right, summarise
from canon_trl.publishing.hub import explained_failure, upload_command
from canon_trl.publishing.model_card import add_results, summary_results
from canon_trl.sampling.chunks import ChunkLog, atomic_write, collect_records
from canon_trl.sampling.scoring import Scorer

ENTROPY = {
    False: "mean entropy of the distributions that tokens were drawn from, exact",
    True: "mean surprisal of the sampled tokens, an estimate of the entropy",
}


def main(argv: list[str] | None = None) -> None:
    benchmarks, options, model = read_benchmarks(argv)
    state = start_processes()
    check_options(options, model, state)
    folder = Path(options.output_dir)
    check_folder(folder, "an evaluation")
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


def load_prompts(benchmark: Benchmark, tokenizer: Any) -> Dataset:
    data = load_held_out(benchmark.recipe)
    if taken := sorted({*COLUMNS, "correct"} & {*data.column_names}):
        raise ValueError(f"{benchmark.name}: the data has columns {taken}, which the records use; rename them")
    check_wording(data, benchmark.options, tokenizer, benchmark.name)
    return data


def data_settings(benchmark: Benchmark) -> dict[str, Any]:
    """Return the settings of the data and the numbers, for readers of the summary."""
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
    """Return the card of a model in a folder or on the Hub."""
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


def run(argv: list[str]) -> None:
    """Evaluate, then end the process."""
    main(argv)
    leave_processes()

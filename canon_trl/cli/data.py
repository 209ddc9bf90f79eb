"""The prompts of a recipe, from an embedded task, a file or a dataset."""

import logging
import math
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from canon_trl.cli.arguments import FILE_BUILDERS, RecipeArguments
from canon_trl.sampling.prompt_checks import check_columns, fault_of
from canon_trl.tasks import TASKS

logger = logging.getLogger(__name__)


def load_data(
    recipe: RecipeArguments, wants_eval: bool
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset | None]:
    """Return training and held-out prompts, with the columns `prompt` and, from a dataset, `solution`."""
    if recipe.task is not None:
        task = TASKS[recipe.task]
        return task.dataset("train", recipe.task_size("train")), load_held_out(recipe) if wants_eval else None
    if recipe.eval_dataset_name is not None and not wants_eval:
        raise ValueError(
            f"eval_dataset_name={recipe.eval_dataset_name!r} would be ignored, because the run uses no held-out "
            "prompts; set eval_strategy (or include_test), or leave it out"
        )
    splits = read_splits(recipe, recipe.dataset_name, recipe.dataset_config)
    train = prepare(splits, recipe.dataset_train_split, recipe.dataset_name, recipe)
    if recipe.eval_dataset_name is not None:
        return train, load_held_out(recipe)
    return train, prepare(splits, recipe.dataset_test_split, recipe.dataset_name, recipe) if wants_eval else None


def load_held_out(recipe: RecipeArguments) -> Dataset | IterableDataset:
    """Return only the held-out prompts; a file is read as a whole."""
    if recipe.task is not None:
        return TASKS[recipe.task].dataset("test", recipe.task_size("test"))
    name, config = recipe.held_out
    assert name is not None  # as `check` has made sure
    splits = read_splits(recipe, name, config, file_split=recipe.dataset_test_split)
    return prepare(splits, recipe.dataset_test_split, name, recipe)


def read_splits(
    recipe: RecipeArguments, name: str, config: str | None, *, file_split: str = "train"
) -> DatasetDict | IterableDatasetDict:
    """Return the splits of a dataset; a file is a single split."""
    path = Path(name)
    if not path.is_file():
        return load_dataset(name, config, streaming=recipe.dataset_streaming)
    if path.suffix not in FILE_BUILDERS:
        raise ValueError(f"{name!r} is a file; its name must end in one of {list(FILE_BUILDERS)}")
    if config is not None:
        raise ValueError(f"{name!r} is a file, which has no configuration {config!r}; leave it out")
    files, kind = {file_split: str(path)}, FILE_BUILDERS[path.suffix]
    try:
        return load_dataset(kind, data_files=files, streaming=recipe.dataset_streaming)
    except DatasetGenerationError as error:
        raise ValueError(f"{name!r} cannot be read as {kind}: {error.__cause__ or error}") from error


def prepare(
    splits: DatasetDict | IterableDatasetDict, split: str, name: str, recipe: RecipeArguments
) -> Dataset | IterableDataset:
    """Return the prompts of a split, with the columns `prompt` (messages) and `solution`."""
    if split not in splits:
        elsewhere = "; set eval_dataset_name if the held-out prompts are elsewhere"
        remedy = elsewhere if split == recipe.dataset_test_split else ""
        raise ValueError(f"{name} has no split {split!r}; it has {list(splits)}{remedy}")
    data = splits[split]
    columns = data.column_names or [*next(iter(data), {})]
    for option in ("prompt_column", "answer_column"):
        column = getattr(recipe, option)
        if column not in columns:
            raise ValueError(f"{option}={column!r} is not in {name}; its columns are {columns}")
    check_columns(columns, name)

    def messages(prompt: Any, row: int) -> list[dict[str, Any]]:
        if fault := fault_of(prompt):
            raise ValueError(f"{name}: the prompt of row {row} {fault}; fix it or remove the row")
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if recipe.system_prompt and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": recipe.system_prompt}, *prompt]
        return prompt

    def add_prompts(rows: dict[str, list], places: list[int]) -> dict[str, list]:
        return {"prompt": [messages(*each) for each in zip(rows[recipe.prompt_column], places, strict=True)]}

    def add_solutions(rows: dict[str, list]) -> dict[str, list]:
        return {"solution": [solution_of(answer, recipe.answer_template) for answer in rows[recipe.answer_column]]}

    data = data.map(add_prompts, with_indices=True, batched=True)
    # Name the type, because it cannot be inferred if the first answers are all missing.
    features = data.features and Features({**data.features, "solution": Value("string")})
    data = data.map(add_solutions, batched=True, features=features)
    if isinstance(data, Dataset):
        warn_of_missing_answers(data, name, recipe)
    return data


def solution_of(answer: Any, template: str) -> str | None:
    """Return the answer as text, several joined by commas; `None` if one is missing, that is null, NaN or blank."""
    answers = answer if isinstance(answer, list) else [answer]
    texts = [as_text(each) for each in answers]
    if not texts or None in texts:
        return None
    return template.replace("{answer}", ", ".join(text for text in texts if text is not None))


def as_text(answer: Any) -> str | None:
    if isinstance(answer, float):
        if math.isnan(answer):
            return None
        if answer.is_integer():  # a whole number in a column that was read as floats because other answers are missing
            return str(int(answer))
    return None if answer is None or not str(answer).strip() else str(answer)


def warn_of_missing_answers(data: Dataset, name: str, recipe: RecipeArguments) -> None:
    missing = [index for index, solution in enumerate(data["solution"][:]) if solution is None]
    if missing:
        logger.warning(
            "%s: %d of %d prompts have no answer in answer_column=%r, the first in row %d. Reward functions get "
            "solution=None for them, and accuracy_reward does not score them",
            name,
            len(missing),
            len(data),
            recipe.answer_column,
            missing[0],
        )

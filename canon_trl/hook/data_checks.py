"""What can be known to be wrong with data before a model is loaded."""

from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset, IterableDataset
from trl import GRPOConfig

from canon_trl.sampling.prompt_checks import check_columns, check_prompts, fault_of_rows


def check_data(train_dataset: Any, eval_dataset: Any, args: GRPOConfig, trl_kwargs: Mapping[str, Any]) -> None:
    """Refuse datasets that cannot be trained or evaluated on.

    All rows of a dataset are looked at. A stream is read from its beginning, as many rows as its first rollout takes.

    Raises:
        TypeError: something that is not a dataset.
        ValueError: a dataset without prompts, or with wrong ones, or fewer than a rollout takes.
    """
    owned = trl_kwargs.get("environment_factory") is not None  # then an environment may bring the prompts
    if owned and train_dataset is None:
        return
    for name, dataset in named_datasets(train_dataset, eval_dataset):
        needed = args.generation_batch_size // args.num_generations if name == "train_dataset" else 1
        rows = list(dataset.take(needed if isinstance(dataset, IterableDataset) else 1))
        columns = [*rows[0]] if rows else dataset.column_names or []
        if not args.remove_unused_columns:
            check_columns(columns, name)
        if "prompt" in columns:
            if isinstance(dataset, Dataset):
                check_prompts(dataset, name)
            if error := fault_of_rows(rows, name):
                raise error
        elif columns and not owned:
            raise ValueError(f"{name} has no column 'prompt'; its columns are {columns}")
        check_size(dataset, len(rows), needed, args, name)


def named_datasets(train_dataset: Any, eval_dataset: Any) -> Iterator[tuple[str, Dataset | IterableDataset]]:
    """The datasets by the names of the arguments that they came in."""
    several = eval_dataset if isinstance(eval_dataset, dict) else {}
    held_out = {f"eval_dataset {name!r}": part for name, part in several.items()} or {"eval_dataset": eval_dataset}
    for name, dataset in {"train_dataset": train_dataset, **held_out}.items():
        if name == "eval_dataset" and dataset is None:
            continue
        if not isinstance(dataset, Dataset | IterableDataset):
            raise TypeError(f"{name} is a {type(dataset).__name__}; it must be a Dataset or an IterableDataset")
        yield name, dataset


def check_size(dataset: Dataset | IterableDataset, seen: int, needed: int, args: GRPOConfig, name: str) -> None:
    """TRL draws whole rollouts from a dataset: with fewer prompts than one takes it would train for 0 steps."""
    size = len(dataset) if isinstance(dataset, Dataset) else seen
    if name == "train_dataset" and size < needed:
        raise ValueError(
            f"train_dataset has {size} prompts, fewer than the {needed} of a rollout "
            f"(generation_batch_size={args.generation_batch_size} / num_generations={args.num_generations}), so there "
            "would be no training step"
        )
    if size == 0:
        raise ValueError(f"{name} is empty")

"""Checks of data, reward functions and the names of models, before a model is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from torch import nn
from transformers import AutoProcessor
from trl import GRPOConfig

from canon_trl.guards.reward_names import check_accuracy_reward, distinct_names, model_id, reward_name
from canon_trl.publishing.model_card import is_on_hub
from canon_trl.sampling.prompt_checks import check_columns, check_prompts, fault_of_rows


def check_inputs(
    model: Any,
    reward_funcs: Sequence[Any],
    args: GRPOConfig,
    train_dataset: Any,
    eval_dataset: Any,
    accuracy_reward: str | None,
    trl_kwargs: Mapping[str, Any],
) -> None:
    """Check models, reward functions and data before a model is loaded."""
    if trl_kwargs.get("environment_factory") is None:  # which may bring a reward
        check_accuracy_reward(accuracy_reward, distinct_names([reward_name(each) for each in reward_funcs]))
    check_model_name(model, "model")
    for function in reward_funcs:
        check_model_name(function, "reward_funcs")
    if check_data(train_dataset, eval_dataset, args, trl_kwargs) and not trl_kwargs.get("rollout_func"):
        check_chat_templates(model, reward_funcs, args, trl_kwargs)


def check_data(train_dataset: Any, eval_dataset: Any, args: GRPOConfig, trl_kwargs: Mapping[str, Any]) -> bool:
    """Check the prompts, and return whether any of them is a conversation, which needs a chat template.

    A dataset is checked in full, a stream only as far as its first rollout reads.

    Raises:
        TypeError: an argument is not a dataset.
        ValueError: a dataset has no prompts, invalid ones, or fewer than a rollout needs.
    """
    has_environment = trl_kwargs.get("environment_factory") is not None  # which may bring the prompts
    if has_environment and train_dataset is None:
        return False
    conversational = False
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
            conversational = conversational or any(isinstance(row["prompt"], list) for row in rows)
        elif columns and not has_environment:
            raise ValueError(f"{name} has no column 'prompt'; its columns are {columns}")
        check_size(dataset, len(rows), needed, args, name)
    return conversational


def named_datasets(train_dataset: Any, eval_dataset: Any) -> Iterator[tuple[str, Dataset | IterableDataset]]:
    """Yield the given datasets, each with the name of its argument."""
    if isinstance(train_dataset, dict):
        raise TypeError(
            f"train_dataset is a {type(train_dataset).__name__} with the splits {[*train_dataset]}; it must be one of "
            f"them, such as train_dataset[{next(iter(train_dataset), 'train')!r}]"
        )
    several = eval_dataset if isinstance(eval_dataset, dict) else {}
    held_out = {f"eval_dataset {name!r}": part for name, part in several.items()} or {"eval_dataset": eval_dataset}
    for name, dataset in {"train_dataset": train_dataset, **held_out}.items():
        if name in ("train_dataset", "eval_dataset") and dataset is None:
            continue  # TRL says where it needs a train_dataset
        if not isinstance(dataset, Dataset | IterableDataset):
            raise TypeError(f"{name} is a {type(dataset).__name__}; it must be a Dataset or an IterableDataset")
        yield name, dataset


def check_size(dataset: Dataset | IterableDataset, seen: int, needed: int, args: GRPOConfig, name: str) -> None:
    """Reject a dataset with fewer prompts than a rollout needs: TRL would train for 0 steps on it."""
    size = len(dataset) if isinstance(dataset, Dataset) else seen
    if name == "train_dataset" and size < needed:
        raise ValueError(
            f"train_dataset has {size} prompts, but a rollout needs {needed} "
            f"(generation_batch_size={args.generation_batch_size} / num_generations={args.num_generations})"
        )
    if size == 0:
        raise ValueError(f"{name} is empty")


def check_model_name(name: Any, field: str) -> None:
    """Reject the path of a folder that does not exist; the Hub would only report a malformed name."""
    if isinstance(name, str) and not Path(name).exists() and not is_on_hub(name):
        raise ValueError(
            f"{field}={name!r}: there is no such folder, and a model on the Hub has the form 'owner/name'"
        )


def check_chat_templates(
    model: Any, reward_funcs: Sequence[Any], args: GRPOConfig, trl_kwargs: Mapping[str, Any]
) -> None:
    """Reject conversations where the tokenizer of the policy or of a reward model has no chat template.

    Raises:
        ValueError: names the tokenizer.
    """
    given = as_list(trl_kwargs.get("reward_processing_classes")) or [None] * len(reward_funcs)
    readers = [("the model", model, trl_kwargs.get("processing_class"))]
    readers += [
        (f"the reward model {reward_name(function)!r}", function, tokenizer)
        for function, tokenizer in zip(reward_funcs, given, strict=False)  # TRL checks that there is one for each
        if isinstance(function, str | nn.Module)
    ]
    for owner, reader, tokenizer in readers:
        tokenizer = tokenizer if tokenizer is not None else load_tokenizer(reader, args)
        if tokenizer is not None and tokenizer.chat_template is None:
            raise ValueError(
                f"the prompts are conversations, and the tokenizer of {owner} has no chat template; give it one, such "
                "as tokenizer.chat_template = \"{{ messages[-1]['content'] }}\" for plain text, or make the prompts "
                "text"
            )


def load_tokenizer(model: Any, args: GRPOConfig) -> Any:
    """Return the tokenizer or processor of a model; `None` if only TRL can find it, after loading the model."""
    revision = (args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None
    try:
        return AutoProcessor.from_pretrained(model_id(model), revision=revision, trust_remote_code=False)
    except (OSError, ValueError):  # an adapter without a tokenizer, or a tokenizer that needs remote code
        return None


def as_list(value: Any) -> list[Any]:
    """Return a new list of the values of an argument that takes one value, a list or `None`."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]

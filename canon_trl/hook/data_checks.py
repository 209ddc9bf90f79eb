"""What can be known to be wrong with data, and with where a model comes from, before the model is loaded."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from torch import nn
from transformers import AutoProcessor
from trl import GRPOConfig

from canon_trl.publishing.model_card import is_on_hub
from canon_trl.sampling.prompt_checks import check_columns, check_prompts, fault_of_rows


def check_data(train_dataset: Any, eval_dataset: Any, args: GRPOConfig, trl_kwargs: Mapping[str, Any]) -> bool:
    """Whether prompts are conversations, which need a chat template.

    All rows of a dataset are looked at. A stream is read from its beginning, as many rows as its first rollout takes.

    Raises:
        TypeError: something that is no dataset.
        ValueError: a dataset without prompts, or with wrong ones, or fewer than a rollout takes.
    """
    owned = trl_kwargs.get("environment_factory") is not None  # then an environment may bring the prompts
    if owned and train_dataset is None:
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
        elif columns and not owned:
            raise ValueError(f"{name} has no column 'prompt'; its columns are {columns}")
        check_size(dataset, len(rows), needed, args, name)
    return conversational


def named_datasets(train_dataset: Any, eval_dataset: Any) -> Iterator[tuple[str, Dataset | IterableDataset]]:
    """The datasets by the names of the arguments that they came in."""
    if train_dataset is None:
        raise ValueError("`train_dataset` is required, and it is None")
    if isinstance(train_dataset, dict):
        raise TypeError(
            f"train_dataset is a {type(train_dataset).__name__} with the splits {[*train_dataset]}; it must be one of "
            f"them, such as train_dataset[{next(iter(train_dataset), 'train')!r}]"
        )
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


def check_model_name(name: Any, field: str) -> None:
    """A path that leads nowhere, which the Hub would take for a malformed name."""
    if isinstance(name, str) and not Path(name).exists() and not is_on_hub(name):
        raise ValueError(f"{field}={name!r}: there is no such folder, and a model on the Hub is named as 'owner/name'")


def check_model_names(model: Any, reward_funcs: Any) -> None:
    check_model_name(model, "model")
    for function in reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]:
        check_model_name(function, "reward_funcs")


def named_processing_class(model: Any, args: GRPOConfig) -> Any:
    """What comes with a model that is only named; `None` where nobody can tell before TRL has loaded both."""
    if not isinstance(model, str):
        return None
    revision = (args.model_init_kwargs or {}).get("revision")
    try:
        return AutoProcessor.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError):  # an adapter without a tokenizer of its own, or code that is not run here
        return None


def check_chat_template(processing_class: Any, whose: str) -> None:
    """Conversations need one; a class that has no such attribute does without."""
    if processing_class is not None and getattr(processing_class, "chat_template", "") is None:
        raise ValueError(
            f"the prompts are conversations, and {whose} has no chat template; give the tokenizer one, such as "
            "tokenizer.chat_template = \"{{ messages[-1]['content'] }}\" for plain text, or make the prompts text"
        )


def check_reward_templates(reward_funcs: list[Any], processing_classes: list[Any], names: list[str]) -> None:
    for function, processing_class, name in zip(reward_funcs, processing_classes, names, strict=True):
        if isinstance(function, nn.Module):
            check_chat_template(processing_class, f"the tokenizer of the reward model {name!r}")

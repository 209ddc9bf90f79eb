"""Datasets with optimal values: what the reference model earned on every prompt, and the V* that follows.

Two layouts are read: a column `rewards` with the list of a prompt's rewards, as `examples/estimate_values.py` writes
it, and columns `eval_0`, `eval_1`, ... with one reward each, as the authors of A*-PO publish theirs.
"""

import math
import re
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from canon_trl.advantages import optimal_value

REWARDS = "rewards"
VALUE = "v_star"
PASS_RATE = "pass_rate"


def sampled_rewards(dataset: Dataset, *, name: str = "dataset") -> Tensor:
    """The rewards that the reference model earned, `(P, N)` in float64; NaN where a response was not scored.

    Raises:
        ValueError: the dataset is empty or has neither layout; its prompts have different numbers of rewards; or what
            is in their place are no finite numbers.
    """
    evaluations = sorted(
        (column for column in dataset.column_names if re.fullmatch(r"eval_\d+", column)),
        key=lambda column: int(column.removeprefix("eval_")),
    )
    if REWARDS in dataset.column_names:
        rows = dataset[REWARDS][:]
    elif evaluations:
        rows = list(zip(*(dataset[column][:] for column in evaluations), strict=True))
    else:
        raise ValueError(
            f"{name} has neither a column {REWARDS!r} nor columns 'eval_0', 'eval_1', ..., so its prompts have no "
            f"optimal value; its columns are {dataset.column_names}. Sample them with examples/estimate_values.py"
        )
    for index, row in enumerate(rows):
        if row is not None and not (isinstance(row, Sequence) and all(is_reward(reward) for reward in row)):
            raise ValueError(
                f"{name}: the rewards of prompt {index} are {row!r}; they must be a list of finite numbers, one a "
                "response, None where it was not scored"
            )
    lengths = {len(row) if row is not None else 0 for row in rows}
    if len(lengths) != 1 or lengths == {0}:
        if not rows:
            raise ValueError(f"{name} is empty")
        first = next(index for index, row in enumerate(rows) if not row or len(row) != max(lengths))
        raise ValueError(
            f"{name}: prompt {first} has {len(rows[first] or [])} rewards and others have {max(lengths)}; every "
            "prompt needs the same number"
        )
    return torch.tensor(
        [[float("nan") if reward is None else float(reward) for reward in row] for row in rows], dtype=torch.float64
    )


def is_reward(value: Any) -> bool:
    """Whether it is a finite number, or says by `None` or NaN that a response was not scored."""
    return value is None or (isinstance(value, Real) and not math.isinf(value))


def with_optimal_values(
    dataset: Dataset, *, beta1: float, filter_all_incorrect: bool, name: str = "dataset"
) -> Dataset:
    """The dataset with columns `v_star`, see [`~canon_trl.advantages.optimal_value`], and `pass_rate`, mean rewards.

    Args:
        dataset: with the rewards of the reference model in one of the two layouts.
        beta1: see `optimal_value`.
        filter_all_incorrect: whether to drop the prompts whose rewards are all 0: V* is 0 as well, so they teach only
            that the reference is as good as any.
        name: of the dataset, for errors.

    Raises:
        ValueError: as for [`sampled_rewards`]; a prompt without a scored response; or none is left.
    """
    rewards = sampled_rewards(dataset, name=name)
    values = optimal_value(rewards, beta=beta1)
    if values.isnan().any():
        raise ValueError(f"{name}: no response to prompt {int(values.isnan().nonzero()[0])} was scored; it has no V*")
    columns = {VALUE: values.tolist(), PASS_RATE: rewards.nanmean(dim=-1).tolist()}
    dataset = dataset.remove_columns([column for column in columns if column in dataset.column_names])
    for column, numbers in columns.items():
        dataset = dataset.add_column(column, numbers)
    if not filter_all_incorrect:
        return dataset
    solved = (rewards.nan_to_num() != 0).any(dim=-1)
    if not solved.any():
        raise ValueError(
            f"{name}: the reference model solved none of its {len(dataset)} prompts; nothing is left to train on. "
            "filter_all_incorrect=False keeps them"
        )
    return dataset.select(solved.nonzero().flatten().tolist())

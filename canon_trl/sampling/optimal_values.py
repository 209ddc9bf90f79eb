"""Compute optimal values V* from the rewards that the reference model earned on every prompt of a dataset.

There are two layouts: a column `rewards` with a list of rewards per prompt, as the command `values` writes,
and columns `eval_0`, `eval_1`, ... with one reward each, as in the datasets of the authors of A*-PO.
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
    """Return the rewards that the reference model earned, `(P, N)` in float64; NaN where a response was not scored.

    Raises:
        ValueError: the dataset is empty or has neither layout, its prompts have different numbers of rewards, or a
            reward is not a finite number.
    """
    evaluations = [column for column in dataset.column_names if re.fullmatch(r"eval_\d+", column)]
    if REWARDS in dataset.column_names:
        rows = dataset[REWARDS][:]
    elif evaluations:
        rows = list(zip(*(dataset[column][:] for column in evaluations), strict=True))
    else:
        raise ValueError(
            f"{name} has neither a column {REWARDS!r} nor columns 'eval_0', 'eval_1', ...; its columns are "
            f"{dataset.column_names}. Sample the rewards with `canon-trl values`"
        )
    for index, row in enumerate(rows):
        if row is not None and not (isinstance(row, Sequence) and all(is_reward(reward) for reward in row)):
            raise ValueError(
                f"{name}: the rewards of prompt {index} are {row!r}; they must be a list of finite numbers, one per "
                "response, with None for a response that was not scored"
            )
    lengths = {len(row) if row is not None else 0 for row in rows}
    if len(lengths) != 1 or lengths == {0}:
        if not rows:
            raise ValueError(f"{name} is empty")
        first = next(index for index, row in enumerate(rows) if not row or len(row) != max(lengths))
        raise ValueError(
            f"{name}: prompt {first} has {len(rows[first] or [])} rewards, but others have {max(lengths)}; all "
            "prompts need the same number"
        )
    return torch.tensor(
        [[float("nan") if reward is None else float(reward) for reward in row] for row in rows], dtype=torch.float64
    )


def is_reward(value: Any) -> bool:
    """Whether the value is a finite number, or `None` or NaN for a response that was not scored."""
    return value is None or (isinstance(value, Real) and not math.isinf(value))


def with_optimal_values(
    dataset: Dataset, *, beta1: float, filter_all_incorrect: bool, name: str = "dataset"
) -> Dataset:
    """Add the columns `v_star`, see [`~canon_trl.advantages.optimal_value`], and `pass_rate`, the mean reward.

    Args:
        dataset: has the rewards of the reference model in one of the two layouts.
        beta1: see `optimal_value`.
        filter_all_incorrect: whether to drop prompts whose rewards are all 0. Their V* is 0 too, so they only pull the
            policy to the reference.
        name: name of the dataset, for errors.

    Raises:
        ValueError: as for [`sampled_rewards`]; a prompt has no scored response; or no prompt is left.
    """
    rewards = sampled_rewards(dataset, name=name)
    values = optimal_value(rewards, beta=beta1)
    if values.isnan().any():
        raise ValueError(f"{name}: prompt {int(values.isnan().nonzero()[0])} has no scored response, so it has no V*")
    columns = {VALUE: values.tolist(), PASS_RATE: rewards.nanmean(dim=-1).tolist()}
    dataset = dataset.remove_columns([column for column in columns if column in dataset.column_names])
    for column, numbers in columns.items():
        dataset = dataset.add_column(column, numbers)
    if not filter_all_incorrect:
        return dataset
    solved = (rewards.nan_to_num() != 0).any(dim=-1)
    if not solved.any():
        raise ValueError(
            f"{name}: the reference model solved none of its {len(dataset)} prompts, so none is left to train on; "
            "filter_all_incorrect=False keeps them"
        )
    return dataset.select(solved.nonzero().flatten().tolist())

"""The names under which reward functions are logged."""

from collections.abc import Sequence
from itertools import chain, count
from typing import Any

from torch import nn
from trl.trainer.utils import get_callable_name


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names, repeated ones numbered: `accuracy`, `accuracy_2`. TRL mixes the logs of functions of one name."""
    found: list[str] = []
    for name in names:
        candidates = chain([name], (f"{name}_{number}" for number in count(2)))
        found.append(next(candidate for candidate in candidates if candidate not in found))
    return found


def check_accuracy_reward(name: str | None, reward_funcs: Any) -> None:
    """Before any model is loaded; a reward model's name is known only afterwards."""
    functions = reward_funcs if isinstance(reward_funcs, list) else [] if reward_funcs is None else [reward_funcs]
    if name is None or any(isinstance(function, (str, nn.Module)) for function in functions):
        return
    known = distinct_names([get_callable_name(function) for function in functions])
    if name not in known:
        raise ValueError(f"accuracy_reward={name!r} must be one of the reward functions {known}")

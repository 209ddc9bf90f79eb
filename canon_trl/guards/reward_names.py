"""The names under which reward functions are logged."""

from collections.abc import Sequence
from itertools import chain, count
from typing import Any

from torch import nn
from trl.trainer.utils import get_callable_name, get_config_model_id


def distinct_names(names: Sequence[str]) -> list[str]:
    """Number repeated names: `accuracy`, `accuracy_2`. TRL mixes the logs of functions with the same name."""
    found: list[str] = []
    for name in names:
        candidates = chain([name], (f"{name}_{number}" for number in count(2)))
        found.append(next(candidate for candidate in candidates if candidate not in found))
    return found


def reward_name(function: Any) -> str:
    """Return the name that TRL gives a reward function or model; a model may be given by its path."""
    if isinstance(function, str | nn.Module):
        return model_id(function).split("/")[-1]
    return get_callable_name(function)


def model_id(model: Any) -> str:
    """Return the folder, or the name on the Hub, that a model comes from."""
    return model if isinstance(model, str) else get_config_model_id(model.config)


def check_accuracy_reward(name: str | None, known: Sequence[str]) -> None:
    if name is not None and name not in known:
        raise ValueError(f"accuracy_reward={name!r} must be one of the reward functions {[*known]}")

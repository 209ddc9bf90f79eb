"""Check what a reward function returns."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch

LARGEST = torch.finfo(torch.float32).max  # TRL computes with rewards in float32


def checked_rewards(rewards: Any, count: int, what: str) -> list[float | None]:
    """Convert the rewards of `count` responses to a list of finite numbers and `None`, and check them.

    NaN counts as `None`, a response that was not scored.

    Args:
        rewards: returned by the function: a sequence, tensor or array of numbers and `None`.
        count: the number of responses.
        what: the function, for errors.

    Raises:
        TypeError: they are not a sequence of numbers and `None`.
        ValueError: there is not one reward per response, or one is infinite in float32.
    """
    if hasattr(rewards, "tolist"):  # a tensor or an array
        rewards = rewards.tolist()
    if not isinstance(rewards, Sequence) or isinstance(rewards, str | bytes):
        raise TypeError(f"{what} returned {type(rewards).__name__} {rewards!r}; it must return a list of rewards")
    if len(rewards) != count:
        raise ValueError(f"{what} returned {len(rewards)} rewards for {count} completions; it must return one each")
    scalars: list[float | None] = [reward.item() if hasattr(reward, "item") else reward for reward in rewards]
    for index, reward in enumerate(scalars):
        if reward is not None and not isinstance(reward, Real):
            raise TypeError(
                f"{what} returned {reward!r}, a {type(reward).__name__}, for completion {index}; it must be a number "
                "or None"
            )
        if reward is not None and abs(reward) > LARGEST:
            raise ValueError(f"{what} returned {reward} for completion {index}; it must be finite in float32 or None")
    return scalars

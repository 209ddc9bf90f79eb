"""Reward responses outside of training."""

import asyncio
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from trl.chat_template_utils import parse_response
from trl.trainer.utils import get_callable_name

from canon_trl.guards import checked_rewards, time_limit
from canon_trl.rollout import weighted_reward
from canon_trl.sampling.samplers import Response, prompt_ids


@dataclass(frozen=True)
class Scorer:
    """Rewards responses with reward functions in TRL's signature, and adds the rewards with their weights.

    Args:
        reward_funcs: functions, synchronous or asynchronous; reward models are not supported.
        tokenizer: turns token ids into text.
        weights: one per function; default 1.
        reward_time_limit: maximum number of seconds for a call of a function; default no limit.
        chat_template_kwargs: those that the prompts were sampled with.

    Raises:
        ValueError: there is not one weight per function, or the time limit is not positive.
        TypeError: a reward function is not callable, or is a model.
    """

    reward_funcs: Sequence[Callable[..., Any]]
    tokenizer: Any
    weights: Sequence[float] | None = None
    reward_time_limit: float | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != len(self.reward_funcs):
            raise ValueError(
                f"reward_weights={list(self.weights)} must be one for each of the {len(self.reward_funcs)} functions"
            )
        if self.reward_time_limit is not None and not 0 < self.reward_time_limit < math.inf:
            raise ValueError(f"reward_time_limit={self.reward_time_limit!r} must lie in (0, inf)")
        for function in self.reward_funcs:
            if not callable(function) or isinstance(function, nn.Module):
                raise TypeError(f"reward_funcs has {function!r}, which is not a reward function")

    def decode(self, responses: Iterable[list[int]]) -> list[str]:
        """Return the texts that reward functions see."""
        return self.tokenizer.batch_decode(list(responses), skip_special_tokens=True)

    def inputs(self, rows: list[dict[str, Any]], responses: Sequence[Sequence[Response]]) -> dict[str, Any]:
        """Return what reward functions and metrics receive: prompts, completions and columns, one per response."""
        rows = [row for row, given in zip(rows, responses, strict=True) for _ in given]
        ids = [response.ids for given in responses for response in given]
        texts = self.decode(ids)
        conversational = not isinstance(rows[0]["prompt"], str)
        taken = ("prompt", "completion", "completion_ids")
        return {
            "prompts": [row["prompt"] for row in rows],
            "completions": self._messages(rows, ids, texts) if conversational else texts,
            "completion_ids": ids,
            **{name: [row[name] for row in rows] for name in rows[0] if name not in taken},
        }

    def __call__(
        self, rows: list[dict[str, Any]], responses: Sequence[Sequence[Response]]
    ) -> list[list[float | None]]:
        """Return the weighted rewards of the responses to each row's prompt; `None` where no function scored one.

        Raises:
            TypeError, ValueError: a function returned something other than numbers, the wrong number of rewards, or an
                infinite reward.
            TimeoutError: a function took longer than the time limit.
        """
        counts = [len(given) for given in responses]
        inputs = self.inputs(rows, responses)
        inputs |= {"trainer_state": None, "log_extra": ignore, "log_metric": ignore}  # as TRL passes them
        by_function = []
        for function in self.reward_funcs:
            what = f"reward function {get_callable_name(function)!r}"
            with time_limit(self.reward_time_limit, what):
                rewards = function(**inputs)
                rewards = asyncio.run(awaited(rewards)) if inspect.isawaitable(rewards) else rewards
            rewards = checked_rewards(rewards, sum(counts), what)
            by_function.append([math.nan if reward is None else float(reward) for reward in rewards])
        weights = torch.tensor(self.weights or [1.0] * len(self.reward_funcs), dtype=torch.float64)
        total = weighted_reward(torch.tensor(by_function, dtype=torch.float64).T, weights)
        rewards = iter([None if math.isnan(value) else value for value in total.tolist()])
        return [[next(rewards) for _ in range(count)] for count in counts]

    def _messages(
        self, rows: list[dict[str, Any]], responses: list[list[int]], texts: list[str]
    ) -> list[list[dict[str, Any]]]:
        """Return responses to conversations as TRL passes them: parsed, if the tokenizer has a response template."""
        if not any(getattr(self.tokenizer, name, None) for name in ("response_template", "response_schema")):
            return [[{"role": "assistant", "content": text}] for text in texts]
        prompts = prompt_ids(self.tokenizer, [row["prompt"] for row in rows], self.chat_template_kwargs)
        return [
            [parse_response(self.tokenizer, ids, prefix=prompt)]
            for prompt, ids in zip(prompts, responses, strict=True)
        ]


def ignore(*args: Any) -> None:
    """Drop what a reward function logs, since there is no completions table."""


async def awaited(value: Any) -> Any:
    return await value

"""What an advantage estimator sees of one rollout."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from canon_trl.rounding import rounding_error


def weighted_reward(rewards_per_func: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the reward functions, `(N, F) -> (N,)`; NaN where none with a weight scored the response.

    A function that returned `None` (NaN) for a response adds nothing to its sum, as in TRL, so that each function may
    judge prompts of its own kind. A function of weight 0 only measures: whether it scored a response changes nothing.
    A sum whose terms cancel up to rounding, such as 1 - 0.9 - 0.1, is 0.
    """
    weights = weights.to(rewards_per_func.device)
    terms = rewards_per_func * weights
    total = terms.nansum(dim=1)
    cancelled = total.abs() <= rounding_error(terms.abs().nansum(dim=1))
    unscored = (rewards_per_func.isnan() | (weights == 0)).all(dim=1)
    return total.masked_fill(cancelled, 0.0).masked_fill(unscored, torch.nan)


class ResponseMetrics(dict[str, Tensor]):
    """The metrics of a rollout by name, each `(P, G)`; asking for one that was not declared says how to declare it."""

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(
            f"metric {name!r} was not computed for this rollout (available: {sorted(self)}). An estimator declares "
            f"what it reads: decorate it with @requires_metrics({name!r})"
        )


@dataclass(frozen=True, eq=False)
class Rollout:
    """One rollout over all ranks, one prompt group per row: P prompts, G responses each, F reward functions.

    Every rank holds the same values, also where the responses of a group were sampled on different ranks.

    Attributes:
        rewards: `(P, G)`, the weighted sum of the reward functions; NaN where none with a weight scored the response.
        rewards_per_func: `(P, G, F)`, unweighted; NaN where the function returned `None`.
        reward_names: the F names of the reward functions, in order.
        reward_weights: `(F,)`, their weights in `rewards`.
        lengths: `(P, G)`, tokens that the model wrote, without those of tools and environments; the true length also
            where the completion is masked as truncated.
        metrics: by name, `(P, G)` each; only those that the estimator declares.
        step: rollouts made in this run before this one, from 0. With one optimiser step per rollout this is the
            optimiser step.
        total_steps: rollouts in the whole run. A stream's passes have no length: where one ends within an optimiser
            step, more are made.
        accuracy: 0-d, the mean of the accuracy reward over all responses that were sampled for the batch, those that
            dynamic sampling replaced included, clipped to [0, 1]; 0 where nothing was scored.
        valid: `(P, G)` bool, false where the reward is NaN.
        width: positions of the widest completion, those of tools and environments included; the T of a token-level
            estimator.
    """

    rewards: Tensor
    rewards_per_func: Tensor
    reward_names: tuple[str, ...]
    reward_weights: Tensor
    lengths: Tensor
    metrics: ResponseMetrics
    step: int
    total_steps: int
    accuracy: Tensor | float
    valid: Tensor
    width: int

    @classmethod
    def example(
        cls,
        prompts: int = 2,
        responses: int = 4,
        *,
        metrics: Iterable[str] | Mapping[str, Tensor] = (),
        seed: int = 0,
        **given: Any,
    ) -> "Rollout":
        """A random rollout, to try an estimator on.

        ```python
        advantages = my_estimator(Rollout.example(metrics=("entropy",)))
        ```

        Args:
            prompts, responses: P and G.
            metrics: that it carries, `(P, G)` each by name; random ones for names alone.
            seed: of the numbers.
            given: attributes in place of the random ones; without others, one reward function makes the rewards.
        """
        random = torch.Generator().manual_seed(seed)
        shape = (prompts, responses)
        rewards = given.get("rewards", torch.randint(0, 2, shape, generator=random).float())
        per_func = given.get("rewards_per_func", rewards.unsqueeze(-1))
        shape = tuple(rewards.shape)
        lengths = given.get("lengths", torch.randint(1, 9, shape, generator=random))
        if not isinstance(metrics, Mapping):
            metrics = {name: torch.rand(shape, generator=random) for name in metrics}
        example: dict[str, Any] = {
            "rewards": rewards,
            "rewards_per_func": per_func,
            "reward_names": tuple(f"reward_{index}" for index in range(per_func.shape[-1])),
            "reward_weights": torch.ones(per_func.shape[-1]),
            "lengths": lengths,
            "metrics": ResponseMetrics(metrics),
            "step": 0,
            "total_steps": 1,
            "accuracy": rewards.nanmean().clamp(0, 1),
            "valid": ~rewards.isnan(),
            "width": int(lengths.max()),
        }
        return cls(**(example | given))


READABLE = ("rollout", *(attribute.name for attribute in fields(Rollout)))

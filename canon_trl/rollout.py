"""What an advantage estimator sees of one rollout."""

from dataclasses import dataclass

import torch
from torch import Tensor


def weighted_reward(rewards_per_func: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the reward functions, `(N, F) -> (N,)`; NaN where none of them could score the response."""
    weighted = (rewards_per_func * weights.to(rewards_per_func.device)).nansum(dim=1)
    return weighted.masked_fill(rewards_per_func.isnan().all(dim=1), torch.nan)


class ResponseMetrics(dict[str, Tensor]):
    """The metrics of a rollout by name, each `(P, G)`; asking for one that was not declared says how to declare it."""

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(
            f"metric {name!r} was not computed for this rollout (available: {sorted(self)}). An estimator declares "
            f"what it reads: decorate it with @requires_metrics({name!r})"
        )


@dataclass(frozen=True, eq=False)
class Rollout:
    """One rollout over all ranks, one prompt group a row: P prompts, G responses each, F reward functions.

    Every rank holds the same values, also where the responses of a group were sampled on different ranks.

    Attributes:
        rewards: `(P, G)`, the weighted sum of the reward functions; NaN where none of them could score the response.
        rewards_per_func: `(P, G, F)`, unweighted; NaN where the function returned `None`.
        reward_names: the F names of the reward functions, in order.
        lengths: `(P, G)`, tokens that the model wrote, without those of tools and environments; the true length also
            where the completion is masked as truncated.
        metrics: by name, `(P, G)` each; only those that the estimator declares.
        step: rollouts made in this run before this one, from 0. With one optimiser step a rollout this is the
            optimiser step.
        total_steps: rollouts in the whole run. A stream's passes have no length: where one ends within an optimiser
            step, more are made.
        accuracy: 0-d, the mean of the accuracy reward over the batch, clipped to [0, 1]; 0 where nothing was scored.
        valid: `(P, G)` bool, false where the reward is NaN.
        width: positions of the widest completion, those of tools and environments included; the T of a token-level
            estimator.
    """

    rewards: Tensor
    rewards_per_func: Tensor
    reward_names: tuple[str, ...]
    lengths: Tensor
    metrics: ResponseMetrics
    step: int
    total_steps: int
    accuracy: Tensor | float
    valid: Tensor
    width: int

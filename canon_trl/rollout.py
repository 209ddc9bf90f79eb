"""The rollout that an advantage estimator receives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from canon_trl.rounding import rounding_error


def weighted_reward(rewards_per_func: Tensor, weights: Tensor) -> Tensor:
    """Sum the reward functions by weight, `(N, F) -> (N,)`; NaN if no function with a weight scored the response.

    As in TRL, a function that returned `None` (NaN) for a response adds nothing, so that each function may score only
    some of the prompts. A function of weight 0 only measures; whether it scored a response changes nothing. If the
    terms cancel up to rounding, as in 1 - 0.9 - 0.1, the sum is 0.
    """
    weights = weights.to(rewards_per_func.device)
    terms = rewards_per_func * weights
    total = terms.nansum(dim=1)
    cancelled = total.abs() <= rounding_error(terms.abs().nansum(dim=1))
    unscored = (rewards_per_func.isnan() | (weights == 0)).all(dim=1)
    return total.masked_fill(cancelled, 0.0).masked_fill(unscored, torch.nan)


class ResponseMetrics(dict[str, Tensor]):
    """The metrics of a rollout by name, `(P, G)` each; the error for a missing one says how to declare it."""

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(
            f"metric {name!r} was not computed for this rollout; available: {sorted(self)}. Declare it with the "
            f"estimator: @requires_metrics({name!r})"
        )


class TokenValues(dict[str, Tensor]):
    """Values per token of a rollout by name, `(P, G, T)` each; the error for a missing one says how to request it."""

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(
            f"{name!r} was not gathered for this rollout; available: {sorted(self)}. Add a positional parameter named "
            f"{name!r} to the estimator"
        )


@dataclass(frozen=True, eq=False)
class Rollout:
    """One rollout over all ranks, one prompt group per row: P prompts, G responses each, F reward functions.

    Every rank holds the same values, even if different ranks sampled the responses of a group.

    Attributes:
        rewards: `(P, G)`, the weighted sum of the reward functions; NaN if no function with a weight scored the
            response.
        rewards_per_func: `(P, G, F)`, unweighted; NaN where the function returned `None`.
        reward_names: the F names of the reward functions, in order.
        reward_weights: `(F,)`, their weights in `rewards`.
        lengths: `(P, G)`, number of tokens that the model wrote, without those of tools and environments; also the
            true length if the completion is masked as truncated.
        metrics: the metrics that the estimator declares, by name, `(P, G)` each.
        step: number of earlier rollouts in this run. With one optimiser step per rollout, this is the optimiser step.
        total_steps: number of rollouts in the whole run. A run on a stream may make more: the length of a pass is
            unknown, and one that ends within an optimiser step adds a rollout.
        accuracy: 0-d, the mean of the accuracy reward over all responses sampled for the batch, including those that
            dynamic sampling replaced, clipped to [0, 1]; 0 if nothing was scored.
        valid: `(P, G)` bool, False where the reward is NaN.
        width: number of positions of the longest completion, including those of tools and environments; the T of a
            token-level estimator.
        token_values: those of `entropies`, `log_probs` and `mask` that the estimator's parameters name.
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
    token_values: TokenValues = field(default_factory=TokenValues)

    @property
    def entropies(self) -> Tensor:
        """`(P, G, T)`, entropy in nats of the sampling policy at each token; 0 off the mask."""
        return self.token_values["entropies"]

    @property
    def log_probs(self) -> Tensor:
        """`(P, G, T)`, log-probability of each token under the sampling policy; 0 off the mask."""
        return self.token_values["log_probs"]

    @property
    def mask(self) -> Tensor:
        """`(P, G, T)` bool, True on the tokens that the model wrote."""
        return self.token_values["mask"]

    @classmethod
    def example(
        cls,
        prompts: int = 2,
        responses: int = 4,
        *,
        metrics: Iterable[str] | Mapping[str, Tensor] = (),
        token_values: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        **given: Any,
    ) -> "Rollout":
        """Make a random rollout for trying out an estimator.

        ```python
        advantages = my_estimator(Rollout.example(metrics=("entropy",)))
        ```

        Args:
            prompts, responses: P and G.
            metrics: metrics by name, `(P, G)` each, or names of metrics to draw at random.
            token_values: `entropies`, `log_probs` and `mask`, `(P, G, T)` each; those not given are drawn at random.
            seed: seed of the random values.
            given: attributes that replace the random ones. By default one reward function gives the rewards.
        """
        random = torch.Generator().manual_seed(seed)
        shape = (prompts, responses)
        rewards = given.get("rewards", torch.randint(0, 2, shape, generator=random).float())
        per_func = given.get("rewards_per_func", rewards.unsqueeze(-1))
        shape = tuple(rewards.shape)
        lengths = given.get("lengths", torch.randint(1, 9, shape, generator=random))
        if not isinstance(metrics, Mapping):
            metrics = {name: torch.rand(shape, generator=random) for name in metrics}
        width = given.get("width", int(lengths.max()))
        mask = torch.arange(width) < lengths.unsqueeze(-1)
        entropies, surprisals = (torch.rand(*mask.shape, generator=random) * mask for _ in range(2))
        drawn = {"entropies": entropies, "log_probs": -surprisals, "mask": mask}
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
            "width": width,
            "token_values": TokenValues(drawn | dict(token_values or {})),
        }
        return cls(**(example | given))


GATHERED_ON_REQUEST = ("entropies", "log_probs", "mask")
READABLE = (
    "rollout",
    *(attribute.name for attribute in fields(Rollout) if attribute.name != "token_values"),
    *GATHERED_ON_REQUEST,
)

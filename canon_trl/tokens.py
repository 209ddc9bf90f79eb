"""The micro-batch that a method receives, after TRL has scored it and before it computes the loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from canon_trl.selection import Search, alone, draw, largest, together

Scope = Literal["micro_batch", "batch"]


def token_mean(values: Tensor, among: Tensor) -> Tensor:
    """Average `(B, T)` values over the tokens that `among` marks, 0-d in at least float32; 0 if it marks none."""
    total = values.masked_fill(~among, 0.0).sum(dtype=torch.promote_types(values.dtype, torch.float32))
    return total / among.sum().clamp(min=1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokens:
    """The tokens of one micro-batch on this rank: B responses, T tokens each.

    Rows are in no order, since TRL shuffles responses over micro-batches and ranks. `response` identifies the row's
    response; responses to one prompt have the same `response // G`.

    Attributes:
        log_probs: `(B, T)` with gradient, log-probability in nats of each sampled token under the current policy.
        entropies: `(B, T)` with gradient, entropy in nats of the policy's distribution at each token.
        old_log_probs: `(B, T)`, log-probabilities under the policy that sampled the rollout, as TRL scored them; with
            one update per rollout, `log_probs` without gradient.
        sampling_log_probs: `(B, T)`, log-probabilities that the sampler reported; NaN where it reported none.
        ref_log_probs: `(B, T)`, log-probabilities under the reference model; `None` without one (`beta=0`).
        advantages: `(B, T)`, 0 outside the mask.
        response_advantages: `(B,)`, as the estimator returned them; the mean over the response if the estimator is
            token-level.
        mask: `(B, T)` bool, True on the tokens to train on.
        rewards: `(B,)`, the weighted reward of each response; NaN if it has none.
        group_rewards: `(B, G)`, the rewards of all responses to the row's prompt, in sampling order.
        response: `(B,)`, index of the response in the rollout, over all ranks.
        clip: how far TRL lets a ratio fall below 1 and rise above 1.
        beta: weight of the KL term in TRL's loss.
        measured: numbers measured over all ranks at the last optimiser step, by name; empty at the first.
        step: number of earlier optimiser steps.
        micro_step: number of earlier micro-batches.
        seed: seed of random choices.
        responses: number of responses in the rollout, over all ranks.
        width: number of positions of the rollout's longest response, over all ranks.
        reduce: sums a tensor over the ranks.
        step_tokens: returns the tokens of the whole optimiser step, and which of its rows are this micro-batch; see
            [`within`].
    """

    log_probs: Tensor
    entropies: Tensor
    old_log_probs: Tensor
    sampling_log_probs: Tensor
    ref_log_probs: Tensor | None
    advantages: Tensor
    response_advantages: Tensor
    mask: Tensor
    rewards: Tensor
    group_rewards: Tensor
    response: Tensor
    clip: tuple[float, float]
    beta: float
    measured: Mapping[str, float]
    step: int
    micro_step: int
    seed: int
    responses: int
    width: int
    reduce: Callable[[Tensor], Tensor] = alone
    step_tokens: "Callable[[], tuple[Tokens, slice]] | None" = None
    _found: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def example(cls, responses: int = 4, tokens: int = 6, group: int = 2, *, seed: int = 0, **given: Any) -> "Tokens":
        """Make random tokens of one rank for trying out a method.

        ```python
        tokens = Tokens.example()
        shaped = my_token_advantage(tokens.advantages, tokens.entropies)
        ```

        Args:
            responses, tokens, group: B, T and G.
            seed: seed of the random values.
            given: attributes that replace the random ones.
        """
        random = torch.Generator().manual_seed(seed)
        old = torch.randn(responses, tokens, generator=random).abs().neg()
        moved = (old + 0.1 * torch.randn(responses, tokens, generator=random)).clamp(max=0.0)
        lengths = torch.randint(1, tokens + 1, (responses,), generator=random)
        rewards = torch.randint(0, 2, (responses,), generator=random).float()
        groups = rewards.view(-1, group)
        mask = torch.arange(tokens) < lengths.unsqueeze(1)
        centred = (groups - groups.mean(dim=1, keepdim=True)).flatten()
        example: dict[str, Any] = {
            "log_probs": moved.requires_grad_(),
            "entropies": torch.rand(responses, tokens, generator=random).requires_grad_(),
            "old_log_probs": old,
            "sampling_log_probs": old,
            "ref_log_probs": old - 0.1 * torch.rand(responses, tokens, generator=random),
            "advantages": centred.unsqueeze(1).expand(mask.shape).masked_fill(~mask, 0.0),
            "response_advantages": centred,
            "mask": mask,
            "rewards": rewards,
            "group_rewards": groups.repeat_interleave(group, dim=0),
            "response": torch.arange(responses),
            "clip": (0.2, 0.28),
            "beta": 0.0,
            "measured": {},
            "step": 0,
            "micro_step": 0,
            "seed": seed,
            "responses": responses,
            "width": tokens,
        }
        return cls(**(example | given))

    @property
    def prompt_rewards(self) -> Tensor:
        """`(P, G)`, the rewards per prompt, for methods that need whole groups.

        These methods receive rows prompt by prompt, in sampling order: row p * G + g is response g to prompt p.
        """
        return self.group_rewards[:: self.group_rewards.shape[1]]

    @property
    def order(self) -> Tensor:
        """`(B, T)` integers below `responses * width`: each token's position in sampling order, over all ranks."""
        return self.response.unsqueeze(1) * self.width + torch.arange(self.mask.shape[1], device=self.mask.device)

    def largest(self, values: Tensor, among: Tensor, count: Tensor) -> Tensor:
        """Choose the `count` largest of the values that `among` marks on all ranks, `(B, T)` bool for this rank.

        Ties go to the first in sampling order. No token leaves its rank.
        """
        search = largest(values, among, count.view(1), self.order, below=self.responses * self.width)
        chosen: Tensor
        (((chosen,), _),) = together(self.reduce, search)
        return chosen

    def draw(self, among: Tensor, count: Tensor) -> Tensor:
        """Draw `count` of the tokens that `among` marks on all ranks at random, `(B, T)` bool for this rank."""
        position = torch.arange(self.mask.shape[1], device=self.mask.device)
        search = draw(among, count.view(1), self.response.unsqueeze(1), position, seed=self.seed, step=self.micro_step)
        chosen: Tensor
        ((chosen,),) = together(self.reduce, search)
        return chosen

    def within(self, scope: Scope) -> "tuple[Tokens, slice]":
        """Return the tokens to choose from, and which of their rows are this micro-batch.

        Args:
            scope: `"micro_batch"` gives these tokens. `"batch"` gives those of the whole optimiser step with the
                rollout's log-probabilities and advantages, without entropies and gradient.
        """
        if scope == "micro_batch" or self.step_tokens is None:
            return self, slice(0, len(self.mask))
        return self.step_tokens()

    def once(self, key: Any, search: Callable[[], Search[Any]]) -> Any:
        """Return the result of a search over the ranks; it runs once per key."""
        if key not in self._found:
            (self._found[key],) = together(self.reduce, search())
        return self._found[key]

    def mean(self, values: Tensor, among: Tensor) -> Tensor:
        """Return [`token_mean`] over the tokens of all ranks, the same number on every rank.

        Its gradient is that of this rank's part times the number of ranks, since training averages gradients over
        ranks. So parameters get the gradient of the whole mean, however tokens are distributed over ranks.
        """
        total = values.masked_fill(~among, 0.0).sum(dtype=torch.float64)
        over_ranks, count, ranks = self.reduce(torch.stack([total.detach(), among.sum(), torch.ones_like(total)]))
        here = total * ranks
        mean: Tensor = (over_ranks + here - here.detach()) / count.clamp(min=1)
        return mean.to(torch.promote_types(values.dtype, torch.float32))


NAMED = ("tokens", "mean", "largest", "draw", "within", "order", "prompt_rewards")
READABLE = (*NAMED, *(attribute.name for attribute in fields(Tokens) if attribute.init))

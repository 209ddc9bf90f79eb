"""What a method sees of one micro-batch, after TRL has scored it and before its loss is computed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


def alone(local: Tensor) -> Tensor:
    """The sum over the ranks of a single rank."""
    return local


def token_mean(values: Tensor, among: Tensor) -> Tensor:
    """The mean of `(B, T)` values over the tokens that `among` marks, 0-d in at least float32; 0 if it marks none."""
    total = values.masked_fill(~among, 0.0).sum(dtype=torch.promote_types(values.dtype, torch.float32))
    return total / among.sum().clamp(min=1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokens:
    """The tokens of one micro-batch on this rank: B responses, T tokens each.

    Rows stand in no order: TRL shuffles responses over micro-batches and ranks. `response` says which one a row is;
    those of one prompt have the same `response // G`.

    Attributes:
        log_probs: `(B, T)` with gradient, log-probability in nats of each sampled token under the policy as it is now.
        entropies: `(B, T)` with gradient, entropy in nats of the policy's distribution at each token.
        old_log_probs: `(B, T)`, under the policy that the rollout was sampled from, as TRL scored it; with one update
            per rollout these are `log_probs` without their gradient.
        sampling_log_probs: `(B, T)`, as the sampler reported them; NaN where it reported none.
        ref_log_probs: `(B, T)` under the reference model; `None` without one (`beta=0`).
        advantages: `(B, T)`, 0 off the mask.
        mask: `(B, T)` bool, true on the tokens that are trained on.
        rewards: `(B,)`, the weighted reward of each response; NaN where it has none.
        group_rewards: `(B, G)`, those of all responses to the prompt, in sampling order.
        response: `(B,)`, the index of each response in the rollout, over all ranks.
        clip: how far TRL lets a ratio fall below 1 and rise above it.
        measured: by name, numbers of all ranks at the last optimiser step; empty at the first.
        step: optimiser steps before this one.
        micro_step: micro-batches before this one.
        seed: of random choices.
        reduce: sums a tensor over the ranks.
    """

    log_probs: Tensor
    entropies: Tensor
    old_log_probs: Tensor
    sampling_log_probs: Tensor
    ref_log_probs: Tensor | None
    advantages: Tensor
    mask: Tensor
    rewards: Tensor
    group_rewards: Tensor
    response: Tensor
    clip: tuple[float, float]
    measured: Mapping[str, float]
    step: int
    micro_step: int
    seed: int
    reduce: Callable[[Tensor], Tensor] = alone

    @classmethod
    def example(cls, responses: int = 4, tokens: int = 6, group: int = 2, *, seed: int = 0, **given: Any) -> "Tokens":
        """Random tokens of one rank, to try a method on.

        ```python
        shaped = my_token_advantage(tokens.advantages, tokens.entropies)
        ```

        Args:
            responses, tokens, group: B, T and G.
            seed: of the numbers.
            given: attributes in place of the random ones.
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
            "mask": mask,
            "rewards": rewards,
            "group_rewards": groups.repeat_interleave(group, dim=0),
            "response": torch.arange(responses),
            "clip": (0.2, 0.28),
            "measured": {},
            "step": 0,
            "micro_step": 0,
            "seed": seed,
        }
        return cls(**(example | given))

    @property
    def prompt_rewards(self) -> Tensor:
        """`(P, G)`, the rewards of each prompt's responses, for methods that need whole groups.

        Those are handed their rows prompt by prompt, in sampling order: row p * G + g is response g to prompt p.
        """
        return self.group_rewards[:: self.group_rewards.shape[1]]

    def mean(self, values: Tensor, among: Tensor) -> Tensor:
        """[`token_mean`] over the tokens of all ranks, the same number on each of them.

        Its gradient is that of this rank's part times the number of ranks, since the gradients of the ranks are
        averaged. So however the tokens are dealt to ranks, a parameter gets the gradient of the whole mean.
        """
        total = values.masked_fill(~among, 0.0).sum(dtype=torch.float64)
        over_ranks, count, ranks = self.reduce(torch.stack([total.detach(), among.sum(), torch.ones_like(total)]))
        here = total * ranks
        mean: Tensor = (over_ranks + here - here.detach()) / count.clamp(min=1)
        return mean.to(torch.promote_types(values.dtype, torch.float32))


READABLE = ("tokens", "mean", "prompt_rewards", *(attribute.name for attribute in fields(Tokens)))

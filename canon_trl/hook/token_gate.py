"""A policy loss at work: which tokens of all ranks it selects, and what they weigh in TRL's loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from trl import GRPOConfig

from canon_trl.hook.token_inputs import trained_tokens
from canon_trl.policy_losses import Among, PolicyLoss
from canon_trl.selection import together


class TokenGate:
    """Puts the advantages of a policy loss in the place of those of a micro-batch.

    Tokens are compared over all ranks without being gathered, and the outcome does not depend on who holds which
    response: of equal tokens the one that was sampled first is chosen, and the random choice is a function of seed,
    step, response and position.

    Args:
        policy_loss: see `canon_trl.policy_losses`.
        accelerator: adds over the ranks.
        args: the seed of the random choice, and how many responses a rollout has on all ranks.
    """

    def __init__(self, policy_loss: PolicyLoss, accelerator: Accelerator, args: GRPOConfig) -> None:
        self.policy_loss = policy_loss
        self._accelerator = accelerator
        self._seed, self._responses = args.seed, args.generation_batch_size
        self.width = 0  # positions of the widest response of the rollout in flight, on any rank
        self._selected: list[Tensor] = []  # of the micro-batches of this optimiser step, with scope "batch"
        self._statistics: list[dict[str, Tensor]] = []

    def advantages(
        self,
        log_probs: Tensor,
        inputs: Mapping[str, Any],
        step_batch: Sequence[Mapping[str, Any]],
        *,
        step: int,
        micro_step: int,
        position: int,
    ) -> Tensor:
        """The advantages of one micro-batch as the loss is to see them, `(B, T)`.

        Args:
            log_probs: `(B, T)`, with gradient.
            inputs: the micro-batch.
            step_batch: the micro-batches of this optimiser step.
            step: optimiser steps before this one.
            micro_step: micro-batches before this one.
            position: of the micro-batch within the optimiser step.
        """
        old_log_probs = inputs.get("old_per_token_logps")
        old_log_probs = log_probs.detach() if old_log_probs is None else old_log_probs
        advantages, mask = per_token(inputs), trained_tokens(inputs)
        if self.policy_loss.scope == "micro_batch":
            packed = torch.stack([log_probs.detach(), old_log_probs, advantages, mask.float()], dim=1)
            selected = self._select(packed, inputs["response"], micro_step)
        else:
            if position == 0:
                self._selected = self._select_in_step(step_batch, step)
            selected = self._selected[position]
        return self.policy_loss.advantages(selected, log_probs, old_log_probs, advantages)

    def pop_statistics(self) -> list[dict[str, Tensor]]:
        """What was noted since the last call, on the device."""
        statistics, self._statistics = self._statistics, []
        return statistics

    def _select_in_step(self, step_batch: Sequence[Mapping[str, Any]], step: int) -> list[Tensor]:
        packed = []
        for inputs in step_batch:
            log_probs = inputs["rollout_log_probs"]
            mask = trained_tokens(inputs) & ~log_probs.isnan()  # vLLM cannot score every token
            log_probs = log_probs.nan_to_num()
            packed.append(torch.stack([log_probs, log_probs, per_token(inputs), mask.float()], dim=1))
        responses = torch.cat([inputs["response"] for inputs in step_batch])
        selected = self._select(torch.cat(packed), responses, step)
        return list(selected.split([len(part) for part in packed]))

    @torch.no_grad()
    def _select(self, packed: Tensor, responses: Tensor, step: int) -> Tensor:
        """The selected tokens of this rank, `(B, T)`, from log-probabilities, old ones, advantages and mask."""
        log_probs, old_log_probs, advantages, mask = packed.unbind(1)
        among = Among(response=responses, responses=self._responses, width=self.width, seed=self._seed, step=step)
        search = self.policy_loss.select_over_ranks(log_probs, old_log_probs, advantages, mask.bool(), among)
        ((selected, statistics),) = together(self._added, search)
        self._statistics.append(statistics)
        return torch.as_tensor(selected)

    def _added(self, local: Tensor) -> Tensor:
        return torch.as_tensor(self._accelerator.reduce(local, reduction="sum"))


def per_token(inputs: Mapping[str, Any]) -> Tensor:
    """The advantages of a micro-batch, `(B, T)`."""
    advantages = inputs["advantages"]
    return advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(inputs["completion_mask"].shape)

"""A policy loss at work: which tokens of all ranks it selects, and what they weigh in TRL's loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from canon_trl.hook.token_inputs import trained_tokens
from canon_trl.policy_losses import PolicyLoss, covariance_statistics, token_covariance


class TokenGate:
    """Puts the advantages of a policy loss in the place of those of a micro-batch.

    Tokens are compared over all ranks. So that the outcome does not depend on who holds which response, the responses
    are put into the order in which they were sampled before the policy loss sees them; the random choice is a function
    of the seed and the optimiser step.

    Args:
        policy_loss: see `canon_trl.policy_losses`.
        accelerator: gathers over the ranks.
        seed: of the random choice.
    """

    def __init__(self, policy_loss: PolicyLoss, accelerator: Accelerator, seed: int) -> None:
        self.policy_loss = policy_loss
        self._accelerator = accelerator
        self._seed = seed
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
            selected = self._select(packed, inputs["response"], self._seed * 1_000_003 + micro_step)
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
        selected = self._select(torch.cat(packed), responses, self._seed * 1_000_003 + step)
        return list(selected.split([len(part) for part in packed]))

    @torch.no_grad()
    def _select(self, packed: Tensor, responses: Tensor, seed: int) -> Tensor:
        """The selected tokens of this rank, `(B, T)`, from log-probabilities, old ones, advantages and mask."""
        rows, _, local_width = packed.shape
        everyones = self._accelerator.gather(nn.functional.pad(packed, (0, self.width - local_width)))
        order = self._accelerator.gather(responses).argsort()
        log_probs, old_log_probs, advantages, mask = everyones[order].unbind(1)
        generator = torch.Generator(packed.device).manual_seed(seed % 2**63)
        selected = self.policy_loss.select(log_probs, old_log_probs, advantages, mask.bool(), generator)
        covariance = token_covariance(log_probs, advantages, mask)
        self._statistics.append(covariance_statistics(covariance, selected, mask))
        first = self._accelerator.process_index * rows
        return selected[order.argsort()][first : first + rows, :local_width]


def per_token(inputs: Mapping[str, Any]) -> Tensor:
    """The advantages of a micro-batch, `(B, T)`."""
    advantages = inputs["advantages"]
    return advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(inputs["completion_mask"].shape)

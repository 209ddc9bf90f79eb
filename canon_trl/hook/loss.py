"""The loss of a micro-batch: TRL's with other advantages, another divisor, or another loss."""

from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from canon_trl.hook.shrunken_steps import ShrunkenSteps, places_over_trained
from canon_trl.hook.token_gate import TokenGate, trained_tokens
from canon_trl.rollout import Rollout


class Losses(GRPOTrainer):
    """Wraps TRL's loss."""

    _losing: dict[str, Any] | None = None  # the micro-batch whose loss is being computed
    _gate: TokenGate | None = None
    _shrunken_steps: ShrunkenSteps | None = None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._losing = inputs = dict(inputs)  # its advantages may be replaced between the scoring and the loss
        if inputs["advantages"].dim() == 2:  # what stands on padding may be NaN, and TRL multiplies it by 0
            inputs["advantages"] = inputs["advantages"].masked_fill(~trained_tokens(inputs), 0.0)
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._losing = None
        accumulated = self.current_gradient_accumulation_steps if self.model.training else 1
        routing = self.router_aux_loss_coef * inputs["aux_loss"] / accumulated if self.aux_loss_enabled else 0.0
        if self._loss_function is not None:
            # TRL's own loss is left without a backward pass; what it logs stands.
            parts = (inputs["log_probs"], inputs["ref_per_token_logps"], inputs["advantages"], trained_tokens(inputs))
            loss = self._loss_function(*parts) / accumulated + routing
        self._check_loss(loss, inputs)
        if self._loss_function is not None:
            return loss
        if self._shrunken_steps is not None and self.model.training:
            rows = inputs["completion_ids"]
            self._shrunken_steps.note(inputs.get("trained"), len(rows), rows.device)
            return loss
        if "trained" not in inputs:
            return loss
        trained = [micro_batch["trained"] for micro_batch in self._step_batch()]
        return (loss - routing) * places_over_trained(trained, self.loss_type, self.accelerator) + routing

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        return loss if self._shrunken_steps is None else self._shrunken_steps.scaled(loss, self.model.parameters())

    def _step_batch(self) -> list[dict[str, Any]]:
        """The micro-batches of the rollout that belong to the optimiser step under way."""
        size = min(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        return self._buffered_inputs[self._position // size * size :][:size]

    @property
    def _position(self) -> int:
        """Which micro-batch of the rollout is trained on."""
        return self._step % self.args.steps_per_generation

    def _gate_inputs(self, output: dict[str, Any], rollout: Rollout) -> dict[str, Tensor]:
        """What the policy loss needs beside TRL's own: which response a row is, and its log-probabilities."""
        self._gate.width = rollout.width
        responses = torch.arange(rollout.rewards.numel(), device=output["completion_ids"].device)
        added = {"response": self._local(responses)}
        if self._gate.policy_loss.scope == "batch":
            old_log_probs = output.get("old_per_token_logps")
            found = self._making.token_values.get("log_probs") if old_log_probs is None else old_log_probs
            added["rollout_log_probs"] = found.float()
        return added

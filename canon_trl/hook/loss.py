"""The loss of a micro-batch: TRL's with other advantages, another divisor, or another loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from canon_trl.hook.phases import Phase, Phases
from canon_trl.hook.rollout_parts import Making
from canon_trl.hook.shrunken_steps import NoneLeftOut
from canon_trl.hook.token_gate import TokenGate, trained_tokens
from canon_trl.rollout import Rollout


class Losing(Phase):
    """The loss of a micro-batch is being computed.

    Args:
        inputs: of the micro-batch. TRL reads the advantages after it has scored the tokens.
        act: what becomes of the advantages, once the tokens are scored.

    Attributes:
        log_probs, entropies: `(B, T)`, with gradient, from TRL's scoring pass.
        aux_loss: of a mixture of experts, 0-d.
    """

    def __init__(self, inputs: dict[str, Any], act: Callable[["Losing"], Tensor]) -> None:
        self.inputs = inputs
        self._act = act
        self.log_probs: Tensor
        self.entropies: Tensor
        self.aux_loss: Tensor

    def score(self, score: Callable[..., tuple], model: Any, input_ids: Tensor, *args: Any, **options: Any) -> tuple:
        scored = score(model, input_ids, *args, **options)
        self.log_probs, self.entropies, self.aux_loss = scored
        self.inputs["advantages"] = self._act(self)
        return scored


class Losses(Phases):
    """Wraps TRL's loss."""

    _gate: TokenGate | None = None
    _left_out = NoneLeftOut()
    _loss_function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        inputs = dict(inputs)
        if inputs["advantages"].dim() == 2:  # what stands on padding may be NaN, and TRL multiplies it by 0
            inputs["advantages"] = inputs["advantages"].masked_fill(~trained_tokens(inputs), 0.0)
        losing = Losing(inputs, self._act)
        with self._during(losing):
            loss = super()._compute_loss(model, inputs)
        accumulated = self.current_gradient_accumulation_steps if self.model.training else 1
        routing = self.router_aux_loss_coef * losing.aux_loss / accumulated if self.aux_loss_enabled else 0.0
        if self._loss_function is not None:
            # TRL's own loss is left without a backward pass; what it logs stands.
            parts = (losing.log_probs, inputs["ref_per_token_logps"], inputs["advantages"], trained_tokens(inputs))
            loss = self._loss_function(*parts) / accumulated + routing
        self._check_loss(loss, inputs, losing.log_probs)
        if self._loss_function is not None or not self.model.training:
            return loss
        step_batch = self._step_batch()
        factor = self._left_out.factor(step_batch, self._position % len(step_batch))
        return loss if isinstance(factor, float) else (loss - routing) * factor + routing

    def _act(self, losing: Losing) -> Tensor:
        if self._gate is None or not self.model.training:
            return losing.inputs["advantages"]
        step_batch = self._step_batch()
        return self._gate.advantages(
            losing.log_probs,
            losing.inputs,
            step_batch,
            step=self.state.global_step,
            micro_step=self._steps_not_restored + self._step,
            position=self._position % len(step_batch),
        )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._left_out.scaled(super().training_step(*args, **kwargs), self.model.parameters())

    def _step_batch(self) -> list[dict[str, Any]]:
        """The micro-batches of the rollout that belong to the optimiser step under way."""
        size = min(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        return self._buffered_inputs[self._position // size * size :][:size]

    @property
    def _position(self) -> int:
        """Which micro-batch of the rollout is trained on."""
        return self._step % self.args.steps_per_generation

    def _gate_inputs(self, output: dict[str, Any], rollout: Rollout, making: Making) -> dict[str, Tensor]:
        """What the policy loss needs beside TRL's own: which response a row is, and its log-probabilities."""
        self._gate.width = rollout.width
        responses = torch.arange(rollout.rewards.numel(), device=output["completion_ids"].device)
        added = {"response": self._local(responses)}
        if self._gate.policy_loss.scope == "batch":
            old_log_probs = output.get("old_per_token_logps")
            found = making.token_values.get("log_probs") if old_log_probs is None else old_log_probs
            added["rollout_log_probs"] = found.float()
        return added

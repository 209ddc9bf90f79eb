"""The loss of a micro-batch: TRL's, with what the stages make of its advantages and add to it."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from canon_trl.config.loss_stages import LossStages
from canon_trl.hook.normaliser import aggregate
from canon_trl.hook.noted import Noted
from canon_trl.hook.phases import Phase
from canon_trl.hook.rollout_parts import Making
from canon_trl.hook.shrunken_steps import NoneLeftOut, ShrunkenSteps
from canon_trl.hook.token_gate import TokenGate
from canon_trl.hook.token_inputs import TokenInputs, trained_tokens
from canon_trl.hook.token_stages import loss_terms, shaped
from canon_trl.rollout import Rollout
from canon_trl.tokens import Tokens

NO_STAGES = LossStages()


class Losing(Phase):
    """The loss of a micro-batch is being computed.

    Args:
        inputs: of the micro-batch. TRL reads the advantages after it has scored the tokens.
        act: called once the tokens are scored; may replace the advantages among the inputs.

    Attributes:
        log_probs, entropies: `(B, T)`, with gradient, from TRL's scoring pass.
        aux_loss: of a mixture of experts, 0-d.
        tokens: what the stages see, where there are any.
    """

    def __init__(self, inputs: dict[str, Any], act: Callable[["Losing"], None]) -> None:
        self.inputs = inputs
        self._act = act
        self.log_probs: Tensor
        self.entropies: Tensor
        self.aux_loss: Tensor
        self.tokens: Tokens

    def score(self, score: Callable[..., tuple], model: Any, input_ids: Tensor, *args: Any, **options: Any) -> tuple:
        scored = score(model, input_ids, *args, **options)
        self.log_probs, self.entropies, self.aux_loss = scored
        self._act(self)
        return scored


class Losses(TokenInputs):
    """Wraps TRL's loss."""

    _gate: TokenGate | None = None
    _left_out = NoneLeftOut()
    _loss_function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
    _token_observers: tuple[Callable[[Tokens], object], ...] = ()

    def on_tokens(self, observe: Callable[[Tokens], object]) -> None:
        """Have every micro-batch's tokens shown in training, with the advantages that the loss sees."""
        self._token_observers += (observe,)

    @cached_property
    def _noted(self) -> Noted:
        return Noted(self.accelerator)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        inputs, training = dict(inputs), self.model.training
        if inputs["advantages"].dim() == 2:  # what stands on padding may be NaN, and TRL multiplies it by 0
            inputs["advantages"] = inputs["advantages"].masked_fill(~trained_tokens(inputs), 0.0)
        stages = self._stages if training else NO_STAGES
        losing = Losing(inputs, partial(self._act, stages))
        with self._during(losing):
            loss = super()._compute_loss(model, inputs)
        if training:
            self._measure_entropy(losing.entropies, trained_tokens(inputs))
        accumulated = self.current_gradient_accumulation_steps if training else 1
        routing = self.router_aux_loss_coef * losing.aux_loss / accumulated if self.aux_loss_enabled else 0.0
        if self._loss_function is not None:
            # TRL's own loss is left without a backward pass; what it logs stands.
            parts = (losing.log_probs, inputs["ref_per_token_logps"], inputs["advantages"], trained_tokens(inputs))
            loss = self._loss_function(*parts) / accumulated + routing
        per_token, own = self._terms(stages, losing)
        loss = loss + per_token if stages.loss_terms else loss
        self._check_loss(loss + own, inputs, losing.log_probs)
        if self._loss_function is not None or not training:
            return loss
        step_batch = self._step_batch()
        factor = self._left_out.factor(step_batch, self._position % len(step_batch))
        loss = loss if isinstance(factor, float) else (loss - routing) * factor + routing
        return loss + own if stages.loss_terms else loss

    def _act(self, stages: LossStages, losing: Losing) -> None:
        inputs = losing.inputs
        observers = self._token_observers if self.model.training else ()
        if any(stages) or observers:
            tokens = self._tokens(inputs, losing.log_probs, losing.entropies)
            losing.tokens = shaped(stages, tokens, self._noted)
            if stages.token_advantages:
                inputs["advantages"] = losing.tokens.advantages
            for observe in observers:
                observe(losing.tokens)
        if self._gate is not None and self.model.training:
            step_batch = self._step_batch()
            inputs["advantages"] = self._gate.advantages(
                losing.log_probs,
                losing.inputs,
                step_batch,
                step=self.state.global_step,
                micro_step=self._steps_not_restored + self._step,
                position=self._position % len(step_batch),
            )

    def _terms(self, stages: LossStages, losing: Losing) -> tuple[Tensor | float, Tensor | float]:
        """What is added to the loss: terms per token, with its divisor, and those with a divisor of their own."""
        per_token: Tensor | float = 0.0
        own: Tensor | float = 0.0
        if not stages.loss_terms:
            return per_token, own
        accumulated = self.current_gradient_accumulation_steps
        for name, term in loss_terms(stages, losing.tokens).items():
            if term.dim():
                value = aggregate(term, losing.tokens.mask, self, losing.inputs)
                per_token = per_token + value
            else:
                if isinstance(self._left_out, ShrunkenSteps):
                    raise ValueError(
                        f"{name} is one number per micro-batch, which cannot leave places out of an optimiser step on "
                        "several rollouts; set dynamic_sampling_kwargs={'exhausted': 'keep'} or 'error'"
                    )
                value = term / accumulated
                own = own + value
            self._noted.part(name, value * accumulated, torch.ones_like(value))
        return per_token, own

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._left_out.scaled(super().training_step(*args, **kwargs), self.model.parameters())

    def _gate_inputs(self, output: dict[str, Any], rollout: Rollout, making: Making) -> dict[str, Tensor]:
        """What the policy loss needs beside TRL's own: which response a row is, and its log-probabilities."""
        if self._gate is None:
            return {}
        self._gate.width = rollout.width
        if self._gate.policy_loss.scope != "batch":
            return {}
        old_log_probs = output.get("old_per_token_logps")
        found = making.token_values["log_probs"] if old_log_probs is None else old_log_probs
        return {"rollout_log_probs": found.float()}

"""The loss of a micro-batch: TRL's, with the advantages, terms and replacements of the stages."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from canon_trl.config.loss_stages import LossStages
from canon_trl.hook.normaliser import aggregate
from canon_trl.hook.phases import Phase
from canon_trl.hook.shrunken_steps import FullBatches, ShrunkenSteps, shrink_error
from canon_trl.hook.stage_log import StageLog
from canon_trl.hook.token_inputs import TokenInputs, token_advantages, trained_tokens
from canon_trl.hook.token_stages import compute_terms, compute_whole_loss, shape_advantages
from canon_trl.tokens import Tokens


class LossPhase(Phase):
    """TRL computes the loss of a micro-batch.

    Args:
        inputs: inputs of the micro-batch. TRL reads the advantages in them after it has scored the tokens.
        after_scoring: called in between; may replace the advantages.

    Attributes:
        log_probs, entropies: `(B, T)`, with gradient, from TRL's scoring pass.
        aux_loss: auxiliary loss of a mixture of experts, 0-d.
        tokens: the tokens that the stages receive, if any stage is active.
    """

    def __init__(self, inputs: dict[str, Any], after_scoring: Callable[["LossPhase"], None]) -> None:
        self.inputs = inputs
        self._after_scoring = after_scoring
        self.log_probs: Tensor
        self.entropies: Tensor
        self.aux_loss: Tensor
        self.tokens: Tokens

    def score(self, score: Callable[..., tuple], model: Any, input_ids: Tensor, *args: Any, **options: Any) -> tuple:
        scored = score(model, input_ids, *args, **options)
        self.log_probs, self.entropies, self.aux_loss = scored
        self._after_scoring(self)
        return scored


class Losses(TokenInputs):
    """Wraps TRL's loss."""

    _weighting = FullBatches()
    _token_observers: tuple[Callable[[Tokens], object], ...] = ()

    def on_tokens(self, observe: Callable[[Tokens], object]) -> None:
        """Call a function with the tokens of every micro-batch in training, and the advantages that the loss uses."""
        self._token_observers += (observe,)

    @cached_property
    def _stage_log(self) -> StageLog:
        return StageLog(self.accelerator)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        inputs, training = dict(inputs), self.model.training
        if inputs["advantages"].dim() == 2:  # TRL multiplies padding by 0, which would keep NaN
            inputs["advantages"] = token_advantages(inputs)
        stages = self._stages if training else self._stages.evaluation
        phase = LossPhase(inputs, partial(self._apply_stages, stages))
        with self._in_phase(phase):
            loss = super()._compute_loss(model, inputs)
        if training:
            self._measure_entropy(phase.entropies, trained_tokens(inputs))
        accumulated = self.current_gradient_accumulation_steps if training else 1
        routing = self.router_aux_loss_coef * phase.aux_loss / accumulated if self.aux_loss_enabled else 0.0
        if stages.whole is not None:
            # TRL's own loss gets no backward pass, but is computed for what it logs.
            loss = compute_whole_loss(stages.whole, phase.tokens) / accumulated + routing
        aggregated, own = self._terms(stages, phase)
        loss = loss + aggregated if stages.added else loss
        self._check_loss(loss + own, inputs, phase.log_probs)
        if training and stages.whole is None:
            factor = self._weighting.factor(self._place_in_step)
            loss = loss if isinstance(factor, float) else (loss - routing) * factor + routing
        return loss + own if stages.added else loss

    def _apply_stages(self, stages: LossStages, phase: LossPhase) -> None:
        observers = self._token_observers if self.model.training else ()
        if any(stages) or observers:
            tokens = self._tokens(phase.inputs, phase.log_probs, phase.entropies)
            phase.tokens = shape_advantages(stages, tokens, self._stage_log)
        if stages.advantage_changes:
            phase.inputs["advantages"] = phase.tokens.advantages
        for observe in observers:
            observe(phase.tokens)

    def _terms(self, stages: LossStages, phase: LossPhase) -> tuple[Tensor | float, Tensor | float]:
        """Return the sum of the terms per token, aggregated like the loss, and the sum of the 0-d terms."""
        aggregated: Tensor | float = 0.0
        own: Tensor | float = 0.0
        for name, term in compute_terms(stages, phase.tokens, self._stage_log) if stages.added else ():
            if term.dim():
                value = aggregate(term, phase.tokens.mask, self, phase.inputs)
                aggregated = aggregated + value
            else:
                if isinstance(self._weighting, ShrunkenSteps):
                    raise shrink_error(name)
                value = term / self.current_gradient_accumulation_steps
                own = own + value
            if name != "policy_loss":
                whole = value * self.current_gradient_accumulation_steps
                self._stage_log.add_ratio(name, whole, torch.ones_like(whole))
        return aggregated, own

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._weighting.scaled(super().training_step(*args, **kwargs), self.model.parameters())

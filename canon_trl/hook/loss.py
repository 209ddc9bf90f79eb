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
from canon_trl.hook.shrunken_steps import NoneLeftOut, ShrunkenSteps
from canon_trl.hook.token_inputs import TokenInputs, per_token, trained_tokens
from canon_trl.hook.token_stages import shaped, terms
from canon_trl.tokens import Tokens


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

    _left_out = NoneLeftOut()
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
            inputs["advantages"] = per_token(inputs)
        stages = self._stages if training else self._stages.evaluation
        losing = Losing(inputs, partial(self._act, stages))
        with self._during(losing):
            loss = super()._compute_loss(model, inputs)
        if training:
            self._measure_entropy(losing.entropies, trained_tokens(inputs))
        accumulated = self.current_gradient_accumulation_steps if training else 1
        routing = self.router_aux_loss_coef * losing.aux_loss / accumulated if self.aux_loss_enabled else 0.0
        if stages.whole is not None:
            # TRL's own loss is left without a backward pass; what it logs stands.
            loss = stages.whole(losing.tokens) / accumulated + routing
        like_the_loss, own = self._terms(stages, losing)
        loss = loss + like_the_loss if stages.added else loss
        self._check_loss(loss + own, inputs, losing.log_probs)
        if training and stages.whole is None:
            factor = self._left_out.factor(self._place_in_step)
            loss = loss if isinstance(factor, float) else (loss - routing) * factor + routing
        return loss + own if stages.added else loss

    def _act(self, stages: LossStages, losing: Losing) -> None:
        observers = self._token_observers if self.model.training else ()
        if any(stages) or observers:
            tokens = self._tokens(losing.inputs, losing.log_probs, losing.entropies)
            losing.tokens = shaped(stages, tokens, self._noted)
        if stages.in_place:
            losing.inputs["advantages"] = losing.tokens.advantages
        for observe in observers:
            observe(losing.tokens)

    def _terms(self, stages: LossStages, losing: Losing) -> tuple[Tensor | float, Tensor | float]:
        """What is added to the loss: terms per token, with its divisor, and those with a divisor of their own."""
        like_the_loss: Tensor | float = 0.0
        own: Tensor | float = 0.0
        for name, term in terms(stages, losing.tokens, self._noted) if stages.added else ():
            if term.dim():
                value = aggregate(term, losing.tokens.mask, self, losing.inputs)
                like_the_loss = like_the_loss + value
            else:
                if isinstance(self._left_out, ShrunkenSteps):
                    raise ValueError(
                        f"{name} is one number per micro-batch, which cannot leave places out of an optimiser step on "
                        "several rollouts; set dynamic_sampling_kwargs={'exhausted': 'keep'} or 'error'"
                    )
                value = term / self.current_gradient_accumulation_steps
                own = own + value
            if name != "policy_loss":
                whole = value * self.current_gradient_accumulation_steps
                self._noted.part(name, whole, torch.ones_like(whole))
        return like_the_loss, own

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._left_out.scaled(super().training_step(*args, **kwargs), self.model.parameters())

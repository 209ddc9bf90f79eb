"""What the stages of the loss see of a micro-batch."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from canon_trl.hook.phases import Phases
from canon_trl.hook.rollout_parts import Making
from canon_trl.hook.steering import Steering
from canon_trl.rollout import Rollout
from canon_trl.tokens import Tokens


class TokenInputs(Phases, Steering):
    """Makes the `Tokens` of a micro-batch, of what the rollout left for it and what TRL's scoring pass gave."""

    def _stage_inputs(self, output: Mapping[str, Any], rollout: Rollout, making: Making) -> dict[str, Tensor]:
        """What goes with each response into its micro-batch, besides TRL's own."""
        rewards = rollout.rewards
        everyones = {
            "response": torch.arange(rewards.numel(), device=rewards.device),
            "rewards": rewards.flatten(),
            "group_rewards": rewards.repeat_interleave(rewards.shape[1], dim=0),
        }
        return {name: self._local(values) for name, values in everyones.items()}

    def _tokens(self, inputs: Mapping[str, Any], log_probs: Tensor, entropies: Tensor) -> Tokens:
        mask = trained_tokens(inputs)
        advantages = inputs["advantages"]
        per_token = advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(mask.shape)
        old_log_probs = inputs.get("old_per_token_logps")
        unknown = torch.full_like(mask, torch.nan, dtype=log_probs.dtype)
        return Tokens(
            log_probs=log_probs,
            entropies=entropies,
            old_log_probs=log_probs.detach() if old_log_probs is None else old_log_probs,
            sampling_log_probs=inputs.get("sampling_per_token_logps", unknown),
            ref_log_probs=inputs.get("ref_per_token_logps"),
            advantages=per_token.masked_fill(~mask, 0.0),
            mask=mask,
            rewards=inputs["rewards"],
            group_rewards=inputs["group_rewards"],
            response=inputs["response"],
            clip=(self.epsilon_low, self.epsilon_high),
            measured=dict(self._measured.numbers),
            step=self.state.global_step,
            micro_step=self._steps_not_restored + self._step,
            seed=self.args.seed,
            reduce=partial(self.accelerator.reduce, reduction="sum"),
        )

    def _step_batch(self) -> list[dict[str, Any]]:
        """The micro-batches of the rollout that belong to the optimiser step under way."""
        size = min(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        return self._buffered_inputs[self._position // size * size :][:size]

    @property
    def _position(self) -> int:
        """Which micro-batch of the rollout is trained on."""
        return self._step % self.args.steps_per_generation


def trained_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """True on the tokens that are trained on, `(B, T)`."""
    mask = inputs["completion_mask"]
    return (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).bool()

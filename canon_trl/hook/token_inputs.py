"""What the stages of the loss see of a micro-batch."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from canon_trl.hook.phases import Phases
from canon_trl.hook.rollout_parts import Making
from canon_trl.hook.steering import Steering
from canon_trl.rollout import Rollout
from canon_trl.tokens import Tokens

# Of a micro-batch's inputs, those that a choice among the tokens of an optimiser step reads.
OF_STEP = ("completion_mask", "tool_mask", "advantages", "response", "rollout_log_probs", "rewards", "group_rewards")


class TokenInputs(Phases, Steering):
    """Makes the `Tokens` of a micro-batch, of what the rollout left for it and what TRL's scoring pass gave."""

    _buffered_inputs: Any  # the micro-batches of the rollout in flight
    _rollout_width = 0  # positions of the longest response of the rollout in flight, on any rank
    _step_tokens: Mapping[int, Tokens] = {}  # of the optimiser step under way, by its first micro-batch

    @property
    def _read_of_rollout(self) -> set[str]:
        """What the stages cannot do without of what a rollout leaves for its micro-batches."""
        of_step = {"rollout_log_probs"} if self._stages.step_wide else set()
        return of_step | ({"response"} if any(self._stages) else set())

    def _stage_inputs(self, output: Mapping[str, Any], rollout: Rollout, making: Making) -> dict[str, Tensor]:
        """What goes with each response into its micro-batch, besides TRL's own."""
        rewards = rollout.rewards
        everyones = {
            "response": torch.arange(rewards.numel(), device=rewards.device),
            "rewards": rewards.flatten(),
            "group_rewards": rewards.repeat_interleave(rewards.shape[1], dim=0),
        }
        added = {name: self._local(values) for name, values in everyones.items()}
        if self.model.training:
            self._rollout_width = rollout.width
        if self.model.training and self._stages.step_wide:
            old_log_probs = output.get("old_per_token_logps")
            found = making.token_values["log_probs"] if old_log_probs is None else old_log_probs
            added["rollout_log_probs"] = found.float()
        return added

    def _tokens(self, inputs: Mapping[str, Any], log_probs: Tensor, entropies: Tensor) -> Tokens:
        mask = trained_tokens(inputs)
        advantages = per_token(inputs)
        old_log_probs = inputs.get("old_per_token_logps")
        unknown = torch.full_like(mask, torch.nan, dtype=log_probs.dtype)
        of_one = inputs["advantages"].dim() == 1
        no_rewards = unknown[:, :1].expand(-1, self.num_generations)  # in a rollout of before there were any
        return Tokens(
            log_probs=log_probs,
            entropies=entropies,
            old_log_probs=log_probs.detach() if old_log_probs is None else old_log_probs,
            sampling_log_probs=inputs.get("sampling_per_token_logps", unknown),
            ref_log_probs=inputs.get("ref_per_token_logps"),
            advantages=advantages,
            response_advantages=inputs["advantages"] if of_one else advantages.sum(1) / mask.sum(1).clamp(min=1),
            mask=mask,
            rewards=inputs.get("rewards", no_rewards[:, 0]),
            group_rewards=inputs.get("group_rewards", no_rewards),
            response=inputs["response"],
            clip=(self.epsilon_low, self.epsilon_high),
            measured=dict(self._measured.numbers),
            step=self.state.global_step,
            micro_step=self._steps_not_restored + self._step,
            seed=self.args.seed,
            responses=self.args.generation_batch_size,
            width=self._rollout_width,
            reduce=partial(self.accelerator.reduce, reduction="sum"),
            step_tokens=self._of_step if self._stages.step_wide else None,
        )

    def _of_step(self) -> tuple[Tokens, slice]:
        """The tokens of the optimiser step under way, as the rollout left them, and the rows of this micro-batch."""
        step_batch, place = self._place_in_step()
        rows = len(step_batch[0]["response"])
        first = self._steps_not_restored + self._step - place
        if first not in self._step_tokens:
            whole = {key: torch.cat([inputs[key] for inputs in step_batch]) for key in step_batch[0] if key in OF_STEP}
            log_probs = whole["rollout_log_probs"]
            scored = ~log_probs.isnan()  # vLLM cannot score every token
            whole["completion_mask"] = whole["completion_mask"] * scored
            whole["old_per_token_logps"] = log_probs = log_probs.nan_to_num()
            tokens = self._tokens(whole, log_probs, torch.full_like(log_probs, torch.nan))
            self._step_tokens = {first: replace(tokens, micro_step=self.state.global_step, step_tokens=None)}
        return self._step_tokens[first], slice(place * rows, (place + 1) * rows)

    def _place_in_step(self) -> tuple[list[dict[str, Any]], int]:
        """The rollout's micro-batches of the optimiser step under way, and which of them is trained on."""
        size = min(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        return self._buffered_inputs[self._position // size * size :][:size], self._position % size

    @property
    def _position(self) -> int:
        """Which micro-batch of the rollout is trained on."""
        return self._step % self.args.steps_per_generation


def per_token(inputs: Mapping[str, Any]) -> Tensor:
    """The advantages of a micro-batch, `(B, T)`, 0 off the mask."""
    mask, advantages = trained_tokens(inputs), inputs["advantages"]
    advantages = advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(mask.shape)
    return advantages.masked_fill(~mask, 0.0)


def trained_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """True on the tokens that are trained on, `(B, T)`."""
    mask = inputs["completion_mask"]
    return (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).bool()

"""Make the `Tokens` of a micro-batch for the stages of the loss."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from canon_trl.hook.phases import Phases
from canon_trl.hook.rollout_parts import RolloutPhase
from canon_trl.hook.steering import Steering
from canon_trl.rollout import Rollout
from canon_trl.tokens import Tokens

# The inputs of a micro-batch that a selection among the tokens of an optimiser step reads.
STEP_INPUTS = (
    "completion_mask",
    "tool_mask",
    "advantages",
    "response",
    "rollout_log_probs",
    "rewards",
    "group_rewards",
)


class TokenInputs(Phases, Steering):
    """Makes the `Tokens` of a micro-batch from its inputs and TRL's scoring pass."""

    _buffered_inputs: Any  # the micro-batches of the rollout in flight
    _rollout_width = 0  # positions of the longest response of the rollout in flight, on any rank
    _step_tokens: Mapping[int, Tokens] = {}  # of the current optimiser step, by its first micro-batch

    @property
    def _required_inputs(self) -> set[str]:
        """The inputs from the rollout that the stages require in every micro-batch."""
        step_wide = {"rollout_log_probs"} if self._stages.step_wide else set()
        return step_wide | ({"response"} if any(self._stages) else set())

    def _stage_inputs(self, output: Mapping[str, Any], rollout: Rollout, phase: RolloutPhase) -> dict[str, Tensor]:
        """Return the inputs to add to TRL's in every micro-batch, one row per response."""
        rewards = rollout.rewards
        gathered = {
            "response": torch.arange(rewards.numel(), device=rewards.device),
            "rewards": rewards.flatten(),
            "group_rewards": rewards.repeat_interleave(rewards.shape[1], dim=0),
        }
        added = {name: self._local_rows(values) for name, values in gathered.items()}
        if self.model.training:
            self._rollout_width = rollout.width
        if self.model.training and self._stages.step_wide:
            old_log_probs = output.get("old_per_token_logps")
            log_probs = phase.token_values["log_probs"] if old_log_probs is None else old_log_probs
            added["rollout_log_probs"] = log_probs.float()
        return added

    def _tokens(self, inputs: Mapping[str, Any], log_probs: Tensor, entropies: Tensor) -> Tokens:
        mask = trained_tokens(inputs)
        advantages = token_advantages(inputs)
        old_log_probs = inputs.get("old_per_token_logps")
        unknown = torch.full_like(mask, torch.nan, dtype=log_probs.dtype)
        per_response = inputs["advantages"].dim() == 1
        no_rewards = unknown[:, :1].expand(-1, self.num_generations)  # as in rollouts of older checkpoints
        return Tokens(
            log_probs=log_probs,
            entropies=entropies,
            old_log_probs=log_probs.detach() if old_log_probs is None else old_log_probs,
            sampling_log_probs=inputs.get("sampling_per_token_logps", unknown),
            ref_log_probs=inputs.get("ref_per_token_logps"),
            advantages=advantages,
            response_advantages=inputs["advantages"] if per_response else advantages.sum(1) / mask.sum(1).clamp(min=1),
            mask=mask,
            rewards=inputs.get("rewards", no_rewards[:, 0]),
            group_rewards=inputs.get("group_rewards", no_rewards),
            response=inputs["response"],
            clip=(self.epsilon_low, self.epsilon_high),
            beta=self.args.beta,
            measured=dict(self._measured.numbers),
            step=self.state.global_step,
            micro_step=self._steps_not_restored + self._step,
            seed=self.args.seed,
            responses=self.args.generation_batch_size,
            width=self._rollout_width,
            reduce=partial(self.accelerator.reduce, reduction="sum"),
            step_tokens=self._tokens_of_step if self._stages.step_wide else None,
        )

    def _tokens_of_step(self) -> tuple[Tokens, slice]:
        """Return all tokens of the current optimiser step, as in the rollout, and the rows of this micro-batch."""
        step_batch, index = self._place_in_step()
        rows = len(step_batch[0]["response"])
        first = self._steps_not_restored + self._step - index
        if first not in self._step_tokens:
            names = [name for name in STEP_INPUTS if name in step_batch[0]]
            whole = {name: torch.cat([inputs[name] for inputs in step_batch]) for name in names}
            log_probs = whole["rollout_log_probs"]
            scored = ~log_probs.isnan()  # vLLM cannot score every token
            whole["completion_mask"] = whole["completion_mask"] * scored
            whole["old_per_token_logps"] = log_probs = log_probs.nan_to_num()
            tokens = self._tokens(whole, log_probs, torch.full_like(log_probs, torch.nan))
            self._step_tokens = {first: replace(tokens, micro_step=self.state.global_step, step_tokens=None)}
        return self._step_tokens[first], slice(index * rows, (index + 1) * rows)

    def _place_in_step(self) -> tuple[list[dict[str, Any]], int]:
        """Return the rollout's micro-batches of the current optimiser step, and the index of the current one."""
        size = min(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        return self._buffered_inputs[self._position // size * size :][:size], self._position % size

    @property
    def _position(self) -> int:
        """The index of the current micro-batch in the rollout."""
        return self._step % self.args.steps_per_generation


def token_advantages(inputs: Mapping[str, Any]) -> Tensor:
    """Return the advantages of a micro-batch per token, `(B, T)`, 0 off the mask."""
    mask, advantages = trained_tokens(inputs), inputs["advantages"]
    advantages = advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(mask.shape)
    return advantages.masked_fill(~mask, 0.0)


def trained_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """True on the tokens that are trained on, `(B, T)`."""
    mask = inputs["completion_mask"]
    return (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).bool()

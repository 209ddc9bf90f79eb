"""Entropies and log-probabilities of the rollout's tokens, from where they cost least."""

import math
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from canon_trl.hook.generation_recorder import GenerationRecorder, NoRecorder
from canon_trl.hook.phases import Phases
from canon_trl.hook.rollout_parts import Making, padded


class Scoring(Phases):
    """Finds what is read of the rollout's tokens, and requests a scoring pass where nothing else has it."""

    _scored_inputs: frozenset[str] = frozenset()  # those of `entropies` and `log_probs` that are read
    _records_generation = False
    _trl_scores = True
    _samples_the_policy = False

    def _recorder(self) -> NoRecorder:
        """What notes token values while responses are generated."""
        if not self._records_generation:
            return NoRecorder()
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        return GenerationRecorder(model, temperature=self.temperature, log_probs="log_probs" in self._scored_inputs)

    def _generate(self, prompts: list) -> tuple:
        """Request a scoring pass of TRL where neither it nor the sampler would give what is read."""
        generated, making = super()._generate(prompts), self._phase
        if isinstance(making, Making) and making.scores and not self._trl_scores and not any(making.recorded):
            if self._scored_inputs - self._sampler_values(making).keys():
                # TRL scores where an optimiser step takes no whole number of rollouts.
                self.num_iterations = self.args.gradient_accumulation_steps + 1
        return generated

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        iterations = self.num_iterations
        try:
            output = super()._generate_and_score_completions(inputs)
            if self.num_iterations != iterations:  # the pass was not for the loss, whose ratios are exactly 1 without
                del output["old_per_token_logps"]
        finally:
            self.num_iterations = iterations
        return output

    def _token_values(self, making: Making) -> dict[str, Tensor]:
        """Those of `entropies` and `log_probs` that are read, `(B, T)`, from where they cost least."""
        values = self._sampler_values(making)
        if not self._scored_inputs - values.keys():
            return values
        recorded = any(making.recorded)
        if making.passes and (self._trl_scores or not recorded):
            scored = making.passes[0]  # the policy's; that of the reference, with the adapters off, comes second
            return {"entropies": scored.entropies, "log_probs": scored.log_probs} | values
        if recorded:
            return making.padded_records(self._width(making), self.accelerator.device) | values
        return values  # in a round of dynamic sampling: the groups that are kept are scored later

    def _sampler_values(self, making: Making) -> dict[str, Tensor]:
        """The log-probabilities that the sampler reported, where they are read and are the policy's."""
        reported = making.sampling_log_probs
        if reported is None or not self._samples_the_policy or "log_probs" not in self._scored_inputs:
            return {}
        rows = [torch.tensor([math.nan if value is None else value for value in row]) for row in reported]
        return {"log_probs": padded(rows, self._width(making), self.accelerator.device)}

    def _width(self, making: Making) -> int:
        """Positions of this rank's completions, as TRL pads them."""
        longest, multiple = max(len(ids) for ids in making.completion_ids), self.pad_to_multiple_of or 1
        return -(-longest // multiple) * multiple

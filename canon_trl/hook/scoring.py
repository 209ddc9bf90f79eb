"""Find entropies and log-probabilities of the rollout's tokens at the lowest cost."""

import math
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from canon_trl.config.sampler import check_sampler
from canon_trl.hook.generation_recorder import GenerationRecorder, NoRecorder
from canon_trl.hook.phases import Phases
from canon_trl.hook.rollout_parts import RolloutPhase, padded
from canon_trl.hook.shared_prefix import SharedPrefixSampler, decoder_obstacles, sampler_obstacles


class Scoring(Phases):
    """Finds the token values that are read, and requests a scoring pass only if nothing else supplies them."""

    _scored_inputs: frozenset[str] = frozenset()  # which of `entropies` and `log_probs` are read
    _records_generation = False
    _trl_scores = True
    _samples_the_policy = False
    _rollout_sampler = "generate"

    def _recorder(self) -> NoRecorder:
        """Return the recorder of token values during generation; it may also do the sampling."""
        model = self.accelerator.unwrap_model(self.model)
        if self._rollout_sampler != "generate":
            obstacles = sampler_obstacles(self, model)
            check_sampler(self._rollout_sampler, obstacles)
            if not obstacles:
                return SharedPrefixSampler(model, self._scored_inputs if self._records_generation else frozenset())
        if not self._records_generation:
            return NoRecorder()
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        return GenerationRecorder(model, temperature=self.temperature, log_probs="log_probs" in self._scored_inputs)

    def _generate(self, prompts: list) -> tuple:
        """Generate, and request a scoring pass from TRL if neither TRL nor the sampler supplies the values read."""
        generated, phase = super()._generate(prompts), self._phase
        if isinstance(phase, RolloutPhase) and phase.scores and not self._trl_scores and not any(phase.recorded):
            if self._scored_inputs - self._sampler_values(phase).keys():
                # TRL scores if an optimiser step does not take a whole number of rollouts.
                self.num_iterations = self.args.gradient_accumulation_steps + 1
                model = self.accelerator.unwrap_model(self.model)
                # A loss of routers would need a mask of the same width as the tokens.
                routed = getattr(model.config.get_text_config(), "output_router_logits", False)
                phase.shares_prompts = not routed and not decoder_obstacles(self, model)
        return generated

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        iterations = self.num_iterations
        try:
            output = super()._generate_and_score_completions(inputs)
            if self.num_iterations != iterations:  # the loss needs no such pass: its ratios are exactly 1
                del output["old_per_token_logps"]
        finally:
            self.num_iterations = iterations
        return output

    def _token_values(self, phase: RolloutPhase) -> dict[str, Tensor]:
        """Return the `entropies` and `log_probs` that are read, `(B, T)`, from the cheapest source."""
        values = self._sampler_values(phase)
        if not self._scored_inputs - values.keys():
            return values
        recorded = any(phase.recorded)
        if phase.passes and (self._trl_scores or not recorded):
            return phase.passes[0] | values  # a second pass is the reference's, with the adapters off
        if recorded:
            return phase.padded_records(self._width(phase), self.accelerator.device) | values
        return values  # in a round of dynamic sampling, the kept groups are scored later

    def _sampler_values(self, phase: RolloutPhase) -> dict[str, Tensor]:
        """Return the log-probabilities from the sampler, if they are read and equal the policy's."""
        reported = phase.sampling_log_probs
        if reported is None or not self._samples_the_policy or "log_probs" not in self._scored_inputs:
            return {}
        rows = [torch.tensor([math.nan if value is None else value for value in row]) for row in reported]
        return {"log_probs": padded(rows, self._width(phase), self.accelerator.device)}

    def _width(self, phase: RolloutPhase) -> int:
        """Return the width to which TRL pads this rank's completions."""
        longest, multiple = max(len(ids) for ids in phase.completion_ids), self.pad_to_multiple_of or 1
        return -(-longest // multiple) * multiple

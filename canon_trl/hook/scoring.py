"""Entropies and log-probabilities of the rollout's tokens, from where they cost least."""

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing

from canon_trl.hook.generation_recorder import GenerationRecorder, NoRecorder
from canon_trl.hook.phases import Phases
from canon_trl.hook.rollout_parts import Making

# Inputs of the model beside the tokens, as `_generate_and_score_completions` hands them to the loss.
MULTIMODAL_INPUTS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


class Scoring(Phases):
    """Finds what metrics read of the rollout's tokens, and runs a scoring pass where nothing else has it."""

    _scored_inputs: frozenset[str] = frozenset()  # those of `entropies` and `log_probs` that are read
    _records_generation = False
    _trl_scores = True
    _samples_the_policy = False

    def _recorder(self) -> NoRecorder:
        """What notes token values while responses are generated, if nothing later computes them anyway."""
        if not self._records_generation or self._trl_scores or not self._scored_inputs:
            return NoRecorder()
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        return GenerationRecorder(model, temperature=self.temperature, log_probs="log_probs" in self._scored_inputs)

    def _token_values(self, output: dict[str, Any], making: Making) -> dict[str, Tensor]:
        """Those of `entropies` and `log_probs` that the metrics read, `(B, T)`, from where they cost least."""
        values = {}
        if "log_probs" in self._scored_inputs and "sampling_per_token_logps" in output and self._samples_the_policy:
            values["log_probs"] = output["sampling_per_token_logps"]
        if not self._scored_inputs - values.keys():
            return values
        # TRL's own pass over the policy is the one whose log-probabilities it kept; another one on the same module is
        # that of the reference, with the adapters off.
        old_log_probs = output.get("old_per_token_logps")
        scored = [scoring for scoring in making.passes if scoring.for_trl is old_log_probs]
        completion_ids = output["completion_ids"]
        if scored:
            found = {"entropies": scored[0].entropies, "log_probs": scored[0].log_probs}
        elif making.recorded and making.recorded[0]:
            found = making.padded_records(completion_ids.shape[1], completion_ids.device)
        else:
            found = self._score(output, making)
        return found | values

    @torch.no_grad()
    def _score(self, output: dict[str, Any], making: Making) -> dict[str, Tensor]:
        """A scoring pass of our own."""
        training = self.model.training
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                output["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size,
                **{key: output[key] for key in MULTIMODAL_INPUTS if key in output},
            )
        scored = making.passes[-1]
        return {"entropies": scored.entropies, "log_probs": scored.log_probs}

"""Entropies and log-probabilities of the rollout's tokens, from where they cost least."""

from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from canon_trl.hook.rollout_parts import RolloutParts, ScoringPass

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


class Scoring(GRPOTrainer):
    """Keeps what TRL's scoring passes compute, and runs one of its own where nothing else has the numbers."""

    _making: RolloutParts | None = None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple:
        if self._losing is not None:
            scored = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, compute_entropy=compute_entropy, **kwargs
            )
            self._losing["log_probs"], self._losing["aux_loss"] = scored[0], scored[2]
            if self._gate is None or not self.model.training:
                return scored
            step_batch = self._step_batch()
            self._losing["advantages"] = self._gate.advantages(
                scored[0],
                self._losing,
                step_batch,
                step=self.state.global_step,
                micro_step=self._steps_not_restored + self._step,
                position=self._position % len(step_batch),
            )
            return scored
        if self._making is not None and self._making.sampling_only and self._making.completion_ids is not None:
            nothing = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
            return nothing, nothing, None  # of which nothing will be read
        # On the completions of a rollout, not within a rollout_func, and on the policy: the reference model's head
        # yields no entropy.
        completed = self._making is not None and self._making.completion_ids is not None
        keep = completed and model is self.model and bool(self._scored_inputs)
        if not keep:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, compute_entropy=compute_entropy, **kwargs
            )
        # A completion that is masked as truncated would be scored as empty. Score what was written, and give TRL the
        # zeros that it expects there.
        written = self._making.written_mask(logits_to_keep, input_ids.device)
        trained = attention_mask[:, -logits_to_keep:].bool()
        attention_mask = torch.cat([attention_mask[:, :-logits_to_keep], written.to(attention_mask.dtype)], dim=1)
        log_probs, entropies, aux_loss = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, compute_entropy=True, **kwargs
        )
        for_trl = log_probs.masked_fill(~trained, 0.0)
        self._making.passes.append(ScoringPass(for_trl, log_probs, entropies))
        return for_trl, entropies, aux_loss

    def _token_values(self, output: dict[str, Any]) -> dict[str, Tensor]:
        """Those of `entropies` and `log_probs` that the metrics read, `(B, T)`, from where they cost least."""
        values = {}
        if "log_probs" in self._scored_inputs and "sampling_per_token_logps" in output and self._samples_the_policy:
            values["log_probs"] = output["sampling_per_token_logps"]
        if not self._scored_inputs - values.keys():
            return values
        # TRL's own pass over the policy is the one whose log-probabilities it kept; another one on the same module is
        # that of the reference, with the adapters off.
        old_log_probs = output.get("old_per_token_logps")
        scored = [scoring for scoring in self._making.passes if scoring.for_trl is old_log_probs]
        completion_ids = output["completion_ids"]
        if scored:
            found = {"entropies": scored[0].entropies, "log_probs": scored[0].log_probs}
        elif self._making.recorded and self._making.recorded[0]:
            found = self._making.padded_records(completion_ids.shape[1], completion_ids.device)
        else:
            found = self._score(output)
        return found | values

    @torch.no_grad()
    def _score(self, output: dict[str, Any]) -> dict[str, Tensor]:
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
        scored = self._making.passes[-1]
        return {"entropies": scored.entropies, "log_probs": scored.log_probs}

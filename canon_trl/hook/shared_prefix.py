"""Sample the responses of a rollout with less computation than transformers' `generate`."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, GenerationMixin, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from canon_trl.hook.generation_recorder import NoRecorder
from canon_trl.sampling.samplers import cache_can_drop_rows, missing_inputs, warpers
from canon_trl.sampling.shared_prefix import Samples, Step, sample_tokens

# Settings in a model's generation config that TRL sets or that do not affect sampling, and those that 1 switches off.
HARMLESS = {
    *("transformers_version", "_from_model_config", "do_sample", "max_length", "max_new_tokens", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
}
OFF_AT_1 = {"num_beams", "num_beam_groups", "num_return_sequences", "typical_p", "length_penalty", "guidance_scale"}


class SharedPrefixSampler(NoRecorder):
    """Replaces `generate` of a model: each prompt is processed once, and finished responses leave the batch.

    It draws the same random numbers as `generate`. So a seed gives the same responses, except where two tokens are so
    close that rounding, which depends on the size of the batch, decides between them.

    Args:
        model: the model whose `generate` TRL calls.
        kept: which of `entropies` and `log_probs` of the tokens to keep, both before logit processors other than the
            temperature, as in a scoring pass.
    """

    def __init__(self, model: Any, kept: frozenset[str]) -> None:
        self._model = model
        self._kept = kept
        self._samples = Samples([], [], [])

    def __enter__(self) -> "SharedPrefixSampler":
        self._model.generate = self.generate
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._model.generate

    def records_of(self, completion_ids: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
        """Return the kept values of each completion by name, `(T,)` each.

        Raises:
            RuntimeError: the completions are not the sampled ones.
        """
        if not self._kept:
            return super().records_of(completion_ids)
        if [list(ids) for ids in completion_ids] != self._samples.ids:
            raise RuntimeError(
                "the completions differ from the sampled ones, so entropies cannot be attributed; set "
                "entropy_source='forward'"
            )
        return self._samples.values

    def generate(self, input_ids: Tensor, attention_mask: Tensor, generation_config: GenerationConfig) -> Tensor:
        """Return prompts and responses with padding on the right, as `generate` does."""
        options: Any = generation_config
        process: Any = warpers(
            options.temperature, options.top_p, options.top_k, options.min_p or None, options.repetition_penalty
        )
        drawn_from_policy = len(process) == 1  # the temperature
        chosen: list[Tensor] = []

        def choose(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
            logits = step.logits.float()
            log_probs = (logits / options.temperature).log_softmax(dim=-1)
            probs = log_probs.exp() if drawn_from_policy else process(step.text, logits).softmax(dim=-1)
            # `torch.multinomial` draws in this way. Rows that have left the batch use up random numbers too.
            race = probs.new_empty(len(input_ids), probs.shape[1]).exponential_()
            race = probs / (race[step.rows] if len(race) > len(probs) else race)
            tokens = race.argmax(dim=-1, keepdim=True)  # NaN counts as the largest
            chosen.append(race.gather(1, tokens).sum())
            values = {}
            if "entropies" in self._kept:  # 0 times minus infinity would be NaN
                policy = probs if drawn_from_policy else log_probs.exp()
                finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
                values["entropies"] = -(policy * finite).sum(dim=-1)
            if "log_probs" in self._kept:
                values["log_probs"] = log_probs.gather(1, tokens).squeeze(1)
            return tokens.squeeze(1), values

        ends = torch.tensor(options.eos_token_id, device=input_ids.device)
        self._samples = sample_tokens(
            self._model, input_ids, attention_mask, choose, max_new_tokens=options.max_new_tokens, ends=ends
        )
        if torch.stack(chosen).isnan().any():
            raise RuntimeError("the probabilities of the next token contain NaN")
        rows = [torch.tensor(ids) for ids in self._samples.ids]
        padded = pad_sequence(rows, batch_first=True, padding_value=options.pad_token_id)
        return torch.cat([input_ids, padded.to(input_ids.device)], dim=1)


def sampler_obstacles(trainer: Any, model: Any) -> list[str]:
    """List what in a trainer and its unwrapped model prevents a [`SharedPrefixSampler`]."""
    decoder: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    replaced = any("generate" in vars(each) for each in (model, decoder))
    other = replaced or type(decoder).generate is not GenerationMixin.generate
    settings = decoder.generation_config.to_diff_dict()
    acting = {
        name: value
        for name, value in settings.items()
        if value and name not in HARMLESS and not (value == 1 and name in OFF_AT_1)
    }
    return [
        *decoder_obstacles(trainer, model),
        *(["another generate method"] if other else []),
        *(f"{name}={value!r} in the model's generation_config" for name, value in acting.items()),
    ]


def decoder_obstacles(trainer: Any, model: Any) -> list[str]:
    """List what in a trainer and its unwrapped model prevents continuing a prompt's cache for several responses."""
    decoder = model
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            return [f"the adapter {type(model.active_peft_config).__name__}"]
        decoder = model.get_base_model()
    name = type(decoder).__name__
    missing = missing_inputs(decoder)
    prepares_alike = type(decoder).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation
    obstacles = {
        "FSDP": trainer.is_fsdp_enabled,
        "DeepSpeed ZeRO-3": is_deepspeed_zero3_enabled(),
        "a processor": not isinstance(trainer.processing_class, PreTrainedTokenizerBase),
        f"{name}, which takes no {', '.join(missing)}": missing,
        f"prepare_inputs_for_generation of {name}": not prepares_alike,
        f"the cache of {name}": not cache_can_drop_rows(decoder),
    }
    return [what for what, present in obstacles.items() if present]

"""What a config asks of the sampler, and where the entropies and log-probabilities of a rollout come from."""

from collections.abc import Mapping
from typing import Any

from trl import GRPOConfig

# Keys of `generation_kwargs` that repeat an option, and where that one is set. The sampler would follow the key, and
# everything else the option: the entropies, the loss, where a response ends.
SET_ELSEWHERE: dict[str, str] = {
    **{
        name: f"the field {name}"
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation", "seed")
    },
    **dict.fromkeys(("max_new_tokens", "max_tokens", "max_length"), "the field max_completion_length"),
    **dict.fromkeys(("n", "num_return_sequences"), "the field num_generations"),
    **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), "the tokenizer (processing_class)"),
    **dict.fromkeys(("do_sample", "logprobs"), "TRL itself"),
}

# Ways of decoding in which a forward pass does not sample one token per row, by the values that switch them off. With
# a cache that is not dynamic, generate compiles the forward pass, which bypasses hooks.
RECORDABLE_DECODING: dict[str, tuple] = {
    "num_beams": (None, 1),
    "guidance_scale": (None, 1, 1.0),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "prefill_chunk_size": (None,),
    "cache_implementation": (None, "dynamic"),
}


def check_generation_kwargs(args: GRPOConfig) -> None:
    """Refuse keys of `generation_kwargs` that repeat another option, or that TRL cannot pass on."""
    given = args.generation_kwargs or {}
    for name in given:
        if name in SET_ELSEWHERE:
            raise ValueError(
                f"generation_kwargs has {name}={given[name]!r}, which {SET_ELSEWHERE[name]} sets; set it there only"
            )
    if "stop_strings" in given:
        raise ValueError(
            f"generation_kwargs has stop_strings={given['stop_strings']!r}, for which transformers needs a tokenizer "
            "that TRL does not pass; with vLLM the key is stop"
        )


def trl_scores(args: GRPOConfig) -> bool:
    """Whether TRL runs a scoring pass of its own over the rollout."""
    micro_batches = args.steps_per_generation * args.num_iterations  # that one rollout is trained on in
    corrects = args.use_vllm and args.vllm_importance_sampling_correction
    return args.gradient_accumulation_steps % micro_batches != 0 or corrects


def samples_the_policy(args: GRPOConfig, *, steered: bool = False) -> bool:
    """Whether the sampler's own log-probabilities are the policy's at the sampling temperature: it cuts off, penalises
    and constrains nothing. A vLLM server may return them without the temperature."""
    whole = args.top_k in (0, -1) and args.top_p == 1 and not args.min_p and args.repetition_penalty == 1
    free = not args.generation_kwargs and args.vllm_structured_outputs_regex is None
    raw = args.use_vllm and args.vllm_mode == "server" and (args.temperature != 1 or steered)
    return whole and free and not raw


def records_generation(entropy_source: str, args: GRPOConfig, trl_kwargs: Mapping[str, Any]) -> bool:
    """Whether to record entropies while generating: each forward pass must sample one token of every row.

    Raises:
        ValueError: `entropy_source="generation"` where that does not hold.
    """
    decoding = (args.generation_kwargs or {}) | {"cache_implementation": args.cache_implementation}
    obstacles = [
        name
        for name, present in {
            "use_vllm": args.use_vllm,
            "use_transformers_continuous_batching": args.use_transformers_continuous_batching,
            **{name: trl_kwargs.get(name) for name in ("rollout_func", "tools", "environment_factory")},
            **{name: decoding.get(name) not in off for name, off in RECORDABLE_DECODING.items()},
        }.items()
        if present
    ]
    if entropy_source == "generation" and obstacles:
        raise ValueError(
            f"entropy_source='generation' does not go with {', '.join(obstacles)}; it must be 'auto' or 'forward'"
        )
    return entropy_source != "forward" and not obstacles

"""What the sampler is asked for, and where the numbers of its tokens come from; all known before a model is loaded."""

from collections.abc import Mapping
from typing import Any

from trl import GRPOConfig

# Keys of `generation_kwargs` for what is said elsewhere, and where. The sampler would follow the key, and all others
# the other place: the entropies, the loss, where a response ends.
SAID_ELSEWHERE: dict[str, str] = {
    **{
        name: f"the field {name}"
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation", "seed")
    },
    **dict.fromkeys(("max_new_tokens", "max_tokens", "max_length"), "the field max_completion_length"),
    **dict.fromkeys(("n", "num_return_sequences"), "the field num_generations"),
    **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), "the tokenizer (processing_class)"),
    **dict.fromkeys(("do_sample", "logprobs", "disable_compile", "return_dict_in_generate"), "TRL itself"),
}

# Ways of decoding in which one forward pass is not one sampled token a row, by the values that switch them off; a
# cache that is not dynamic lets generate compile the forward pass, past any hook.
RECORDABLE_DECODING: dict[str, tuple] = {
    "num_beams": (None, 1),
    "guidance_scale": (None, 1, 1.0),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "prefill_chunk_size": (None,),
    "cache_implementation": (None, "dynamic"),
}


def check_generation_kwargs(args: GRPOConfig) -> None:
    """Refuse options of the sampler that are said elsewhere, or that TRL's call of it cannot honour."""
    given = args.generation_kwargs or {}
    for name in given:
        if name in SAID_ELSEWHERE:
            raise ValueError(
                f"generation_kwargs has {name}={given[name]!r}, which {SAID_ELSEWHERE[name]} says; set it there alone"
            )
    if "stop_strings" in given:
        raise ValueError(
            f"generation_kwargs has stop_strings={given['stop_strings']!r}, for which transformers needs a tokenizer "
            "that TRL does not hand over; with vLLM it is called stop"
        )
    if "structured_outputs" in given and args.vllm_structured_outputs_regex is not None:
        raise ValueError(
            f"generation_kwargs has structured_outputs={given['structured_outputs']!r}, in whose place "
            f"vllm_structured_outputs_regex={args.vllm_structured_outputs_regex!r} would be taken; set only one"
        )


def trl_scores(args: GRPOConfig) -> bool:
    """Whether TRL runs a scoring pass of its own over the rollout."""
    micro_batches = args.steps_per_generation * args.num_iterations  # that one rollout is trained on in
    corrects = args.use_vllm and args.vllm_importance_sampling_correction
    return args.gradient_accumulation_steps % micro_batches != 0 or corrects


def samples_the_policy(args: GRPOConfig) -> bool:
    """Whether the sampler's own log-probabilities are the policy's at the sampling temperature: nothing is cut off,
    penalised or constrained. A server of vLLM's may give them without the temperature."""
    whole = args.top_k in (0, -1) and args.top_p == 1 and not args.min_p and args.repetition_penalty == 1
    free = not args.generation_kwargs and args.vllm_structured_outputs_regex is None
    raw = args.use_vllm and args.vllm_mode == "server" and args.temperature != 1
    return whole and free and not raw


def records_generation(entropy_source: str, args: GRPOConfig, trl_kwargs: Mapping[str, Any]) -> bool:
    """Whether entropies are recorded while generating: each forward pass must be one sampled token of every row.

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
            f"entropy_source='generation' cannot be had with {', '.join(obstacles)}; it must be 'auto' or 'forward'"
        )
    return entropy_source != "forward" and not obstacles

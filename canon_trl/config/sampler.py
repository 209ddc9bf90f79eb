"""Checks of the sampler's options, and the source of a rollout's entropies and log-probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from trl import GRPOConfig

# Keys of `generation_kwargs` that duplicate an option, and the place to set that option. The sampler would follow the
# key; the entropies, the loss and the end of a response would follow the option.
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

# Those that only the sampler reads, so that the key may set the option.
OF_SAMPLER = ("top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")

ROLLOUT_SAMPLERS = ("auto", "shared_prefix", "generate")

# Options that make a forward pass sample anything but one token per row, with the values that switch them off. With a
# cache that is not dynamic, generate compiles the forward pass, which bypasses hooks.
RECORDABLE_DECODING: dict[str, tuple] = {
    "num_beams": (None, 1),
    "guidance_scale": (None, 1, 1.0),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "prefill_chunk_size": (None,),
    "cache_implementation": (None, "dynamic"),
}


def move_generation_kwargs(args: GRPOConfig) -> None:
    """Move keys of `generation_kwargs` to options of the sampler that are at their defaults."""
    given = args.generation_kwargs or {}
    defaults = {option.name: option.default for option in fields(args)}
    moved = [name for name in OF_SAMPLER if given.get(name) is not None and getattr(args, name) == defaults[name]]
    for name in moved:
        setattr(args, name, given[name])
    if moved:
        args.generation_kwargs = {name: value for name, value in given.items() if name not in moved}


def check_generation_kwargs(args: GRPOConfig) -> None:
    """Reject keys of `generation_kwargs` that duplicate an option or that TRL cannot pass on."""
    given = args.generation_kwargs or {}
    for name in given:
        if name in SET_ELSEWHERE and not (name == "do_sample" and given[name] is True):  # as TRL sets it
            raise ValueError(
                f"generation_kwargs has {name}={given[name]!r}, which {SET_ELSEWHERE[name]} sets; set it there only"
            )
    if "stop_strings" in given:
        raise ValueError(
            f"generation_kwargs has stop_strings={given['stop_strings']!r}, for which transformers needs a tokenizer "
            "that TRL does not pass; with vLLM the key is stop"
        )


def trl_scores(args: GRPOConfig) -> bool:
    """Whether TRL itself runs a scoring pass over the rollout."""
    micro_batches = args.steps_per_generation * args.num_iterations  # trained on per rollout
    corrects = args.use_vllm and args.vllm_importance_sampling_correction
    return args.gradient_accumulation_steps % micro_batches != 0 or corrects


def samples_the_policy(args: GRPOConfig, *, steered: bool = False) -> bool:
    """Whether the sampler's log-probabilities are the policy's at the sampling temperature.

    They are if nothing truncates, penalises or constrains sampling. A vLLM server may ignore the temperature in them.
    """
    whole = args.top_k in (0, -1) and args.top_p == 1 and not args.min_p and args.repetition_penalty == 1
    free = not args.generation_kwargs and args.vllm_structured_outputs_regex is None
    raw = args.use_vllm and args.vllm_mode == "server" and (args.temperature != 1 or steered)
    return whole and free and not raw


def can_share_prefix(rollout_sampler: str, args: GRPOConfig, trl_kwargs: Mapping[str, Any]) -> bool:
    """Tell whether these options allow sampling that processes each prompt once for all its responses.

    Raises:
        ValueError: an unknown sampler, or `rollout_sampler="shared_prefix"` with options that prevent it.
    """
    if rollout_sampler not in ROLLOUT_SAMPLERS:
        raise ValueError(f"rollout_sampler={rollout_sampler!r} must be one of {ROLLOUT_SAMPLERS}")
    obstacles = {
        "use_vllm": args.use_vllm,
        "use_transformers_continuous_batching": args.use_transformers_continuous_batching,
        "rollout_func": trl_kwargs.get("rollout_func"),
        "generation_kwargs": args.generation_kwargs,
        f"cache_implementation={args.cache_implementation!r}": args.cache_implementation not in (None, "dynamic"),
        "torch_compile": args.torch_compile,
        **{f"{name}=None": getattr(args, name) is None for name in ("top_p", "top_k", "repetition_penalty")},
    }
    check_sampler(rollout_sampler, [name for name, present in obstacles.items() if present])
    return rollout_sampler != "generate" and not any(obstacles.values())


def check_sampler(rollout_sampler: str, obstacles: Sequence[str]) -> None:
    """Reject `rollout_sampler="shared_prefix"` if anything prevents it."""
    if rollout_sampler == "shared_prefix" and obstacles:
        raise ValueError(
            f"rollout_sampler='shared_prefix' does not work with {', '.join(obstacles)}; set 'auto' or 'generate'"
        )


def records_generation(entropy_source: str, args: GRPOConfig, trl_kwargs: Mapping[str, Any]) -> bool:
    """Whether to record entropies while generating, which needs forward passes that sample one token per row.

    Raises:
        ValueError: `entropy_source="generation"` with options that prevent this.
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
            f"entropy_source='generation' does not work with {', '.join(obstacles)}; set 'auto' or 'forward'"
        )
    return entropy_source != "forward" and not obstacles

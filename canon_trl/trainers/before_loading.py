"""What can be known to be wrong before a model is loaded."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from torch import nn
from trl import GRPOConfig
from trl.trainer.utils import get_callable_name

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


def check_vllm(args: GRPOConfig) -> None:
    if args.use_vllm and find_spec("vllm") is None:
        raise ImportError("use_vllm=True needs vllm; install canon-trl[vllm]")


def check_dynamic_sampling(wanted: bool, trl_kwargs: Mapping[str, Any]) -> None:
    if wanted and trl_kwargs.get("environment_factory") is not None:
        raise ValueError(
            "dynamic_sampling=True does not go with environment_factory: the state that an environment is in after "
            "one generation round is gone when the next one resets it"
        )


def check_prompt_column(dataset: Any, name: str) -> None:
    for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
        columns = getattr(part, "column_names", None)
        if columns is not None and "prompt" not in columns:
            raise ValueError(f"{name} has no column 'prompt'; its columns are {list(columns)}")


def check_accuracy_reward(name: str | None, reward_funcs: Any) -> None:
    """Before any model is loaded; a reward model's name is known only afterwards."""
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    if name is None or any(isinstance(function, (str, nn.Module)) for function in functions):
        return
    known = [get_callable_name(function) for function in functions]
    if name not in known:
        raise ValueError(f"accuracy_reward={name!r} must be one of the reward functions {known}")


def records_generation(entropy_source: str, args: GRPOConfig, trl_kwargs: Mapping[str, Any]) -> bool:
    """Whether entropies are recorded while generating: each forward pass must be one sampled token of every row.

    Raises:
        ValueError: `entropy_source="generation"` where that does not hold.
    """
    decoding = {"cache_implementation": args.cache_implementation} | (args.generation_kwargs or {})
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

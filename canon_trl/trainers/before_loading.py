"""What can be known to be wrong before a model is loaded."""

from collections.abc import Mapping, Sized
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from torch import nn
from trl import GRPOConfig
from trl.trainer.utils import get_callable_name

from canon_trl.policy_losses import PolicyLoss

# Losses that clip the ratio of every token as PPO does; they differ in what they divide by.
PPO_LOSSES = ("grpo", "bnpo", "dapo", "dr_grpo")

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


def check_policy_loss(args: GRPOConfig, policy_loss: PolicyLoss) -> None:
    needed: dict[str, tuple[Any, ...]] = {"loss_type": PPO_LOSSES, "importance_sampling_level": ("token",)}
    needed |= {"delta": (None,), "off_policy_mask_threshold": (None,)}
    for name, allowed in needed.items():
        if (value := getattr(args, name)) not in allowed:
            raise ValueError(
                f"{name}={value!r} does not go with a policy_loss, which is defined on PPO's loss per token; it must "
                f"be one of {allowed}"
            )
    clip = {option.name: option.default for option in fields(args) if option.name in ("epsilon", "epsilon_high")}
    changed = [name for name, default in clip.items() if getattr(args, name) != default]
    if changed and not policy_loss.clips_ratios:
        raise ValueError(
            f"{', '.join(changed)} would be ignored: {type(policy_loss).__name__} clips no ratio; leave {clip} as "
            "they are"
        )
    a_step, a_rollout = args.gradient_accumulation_steps, args.steps_per_generation
    if policy_loss.scope == "batch" and a_rollout % a_step:
        raise ValueError(
            f"policy_loss_kwargs has scope='batch', the batch of one optimiser step, of which "
            f"gradient_accumulation_steps={a_step} micro-batches must come from one rollout of "
            f"steps_per_generation={a_rollout}; make this a multiple of the former"
        )


def check_loss_function(args: GRPOConfig, policy_loss: PolicyLoss | None) -> None:
    if not args.beta:
        raise ValueError(f"beta={args.beta!r} must be above 0 with a loss_function: it reads the reference model")
    if policy_loss is not None:
        raise ValueError("policy_loss would be ignored: a loss_function takes the place of TRL's loss")


def trl_scores(args: GRPOConfig) -> bool:
    """Whether TRL runs a scoring pass of its own over the rollout."""
    micro_batches = args.steps_per_generation * args.num_iterations  # that one rollout is trained on in
    corrects = args.use_vllm and args.vllm_importance_sampling_correction
    return args.gradient_accumulation_steps % micro_batches != 0 or corrects


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


def check_enough_prompts(dataset: Any, args: GRPOConfig) -> None:
    """TRL draws whole rollouts from a dataset: with fewer prompts than one takes it would train for 0 steps."""
    prompts = args.generation_batch_size // args.num_generations
    if isinstance(dataset, Sized) and len(dataset) < prompts:
        raise ValueError(
            f"train_dataset has {len(dataset)} prompts, fewer than the {prompts} of a rollout "
            f"(generation_batch_size={args.generation_batch_size} / num_generations={args.num_generations}), so there "
            "would be no training step"
        )


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

"""What can be known to be wrong before a model is loaded."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from importlib.util import find_spec
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from trl import GRPOConfig

from canon_trl.policy_losses import PolicyLoss
from canon_trl.sampling import DynamicSampling

# Losses that clip the ratio of every token as PPO does; they differ in what they divide by.
PPO_LOSSES = ("grpo", "bnpo", "dapo", "dr_grpo")
CLIPPED_LOSSES = (*PPO_LOSSES, "luspo")
PER_TOKEN = ("dapo", "cispo", "vespo")  # losses that are divided by the tokens that are trained on

# What a value may be, by the annotation of its field; a flag is no number, though Python counts with it.
KINDS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda value: value in (True, False)),
    int: ("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
    NoneType: ("None", lambda value: value is None),
}

# Where the numbers of a config and of its `..._kwargs` must lie. NaN lies nowhere. Ends of 1e-3, 1e3 and 1e6 are no
# advice: beyond them float32 soon overflows.
BOUNDS: dict[str, str] = {
    # The rollout
    **dict.fromkeys(("num_generations", "num_generations_eval", "max_completion_length"), "[1, inf)"),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), "[1, inf)"),
    **dict.fromkeys(("gradient_accumulation_steps", "steps_per_generation", "generation_batch_size"), "[1, inf)"),
    **dict.fromkeys(("num_iterations", "max_tool_calling_iterations"), "[1, inf)"),
    "temperature": "[0.01, inf)",  # vLLM takes less for 0.01
    "top_p": "(0, 1]",
    "top_k": "[0, inf)",
    "min_p": "[0, 1]",
    "repetition_penalty": "[1e-3, 1e3]",
    "vllm_gpu_memory_utilization": "(0, 1]",
    **dict.fromkeys(("vllm_tensor_parallel_size", "vllm_max_model_length"), "[1, inf)"),
    # The loss
    "beta": "[0, 1e6]",
    **dict.fromkeys(("epsilon", "epsilon_high", "off_policy_mask_threshold"), "[0, inf]"),
    "delta": "(0, inf]",
    "top_entropy_quantile": "[0, 1]",
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos"), "[1e-3, 1e3]"),
    **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), "[0, 1e3]"),
    **dict.fromkeys(("entropy_coef", "entropy_coef_min", "entropy_coef_max"), "[-1e6, 1e6]"),
    "entropy_coef_delta": "[0, 1e6]",
    "ref_model_mixup_alpha": "[0, 1]",
    "ref_model_sync_steps": "[1, inf)",
    # The optimiser and the run
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon"), "[0, 1e6]"),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), "[0, 1)"),
    **dict.fromkeys(("warmup_steps", "logging_steps"), "[0, inf)"),
    **dict.fromkeys(("num_train_epochs", "reward_time_limit"), "(0, inf)"),
    **dict.fromkeys(("seed", "data_seed"), "[0, 2147483647]"),
    # CANON, the other estimators and A*-PO
    **dict.fromkeys(("canon_mu", "canon_cosine_low", "canon_cosine_high"), "[0, 1]"),
    "canon_alpha": "(0, 1e6]",
    "canon_cosine_warmup_ratio": "[0, 1)",
    "canon_cosine_cycles": "[1, inf)",
    **dict.fromkeys(("eps", "attenuation"), "(0, 1e6]"),
    "positive_weight": "[0, 1e6]",
    "beta1": "[0, 1e6]",
    "beta2": "(0, 1e6]",
}

# Numbers that torch and transformers refuse where they are written as whole ones.
NEVER_WHOLE = ("adam_beta1", "adam_beta2", "temperature", "repetition_penalty")

CHOICES: dict[str, tuple] = {
    "loss_type": (*CLIPPED_LOSSES, "cispo", "sapo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "vllm_mode": ("server", "colocate"),
    "eval_strategy": ("no", "steps", "epoch"),
}

# Options that TRL reads only where another one has one of these values; elsewhere it would ignore them.
READ_ONLY_WITH: dict[str, tuple[str, tuple]] = {
    **dict.fromkeys(("epsilon", "delta"), ("loss_type", CLIPPED_LOSSES)),
    "epsilon_high": ("loss_type", (*CLIPPED_LOSSES, "cispo")),
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos"), ("loss_type", ("sapo",))),
    **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), ("loss_type", ("vespo",))),
    **dict.fromkeys(("ref_model_mixup_alpha", "ref_model_sync_steps"), ("sync_ref_model", (True,))),
    **dict.fromkeys(("entropy_coef_min", "entropy_coef_max"), ("use_adaptive_entropy", (True,))),
    **dict.fromkeys(("entropy_coef_delta", "entropy_target"), ("use_adaptive_entropy", (True,))),
}


def check_values(values: Mapping[str, Any], types: Mapping[str, Any], *, where: str = "") -> None:
    """Refuse values of another kind than their annotation says, and numbers out of their [`BOUNDS`].

    Args:
        values: by name.
        types: annotations by name; those of other things than numbers, flags, texts and choices are let pass.
        where: what the values belong to, for the message.
    """
    for name, value in values.items():
        kinds = get_args(types.get(name)) or (types.get(name),)
        if get_origin(types.get(name)) is Literal and value not in kinds:
            *others, last = map(repr, kinds)
            raise ValueError(f"{where}{name}={value!r} must be {', '.join(others)} or {last}")
        if not set(kinds) <= KINDS.keys():
            continue
        if not any(KINDS[kind][1](value) for kind in kinds):
            raise ValueError(f"{where}{name}={value!r} must be {' or '.join(KINDS[kind][0] for kind in kinds)}")
        bounds = BOUNDS.get(name, "[-inf, inf]")
        if isinstance(value, Real) and not isinstance(value, bool) and not lies_in(float(value), bounds):
            raise ValueError(f"{where}{name}={value!r} must lie in {bounds}")


def lies_in(value: float, interval: str) -> bool:
    """Whether a number lies in an interval such as `"[0, inf)"`: a square bracket includes its end."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    return low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")


def assignments(args: GRPOConfig, names: Iterable[str]) -> str:
    """Fields with their values, for a message."""
    return ", ".join(f"{name}={getattr(args, name)!r}" for name in names)


def check_config(args: GRPOConfig) -> None:
    """What TRL would let pass, to ignore it or to fail with it later. To be called before its own `__post_init__`."""
    if args.top_k == -1:  # vLLM's name of 0
        args.top_k = 0
    if args.max_grad_norm is None:
        args.max_grad_norm = 0.0  # which clips nothing
    defaults = {option.name: option.default for option in fields(args)}
    trl_defaults = {option.name: option.default for option in fields(GRPOConfig)}
    values = {name: getattr(args, name) for name in defaults}
    # An inherited text may be more than it says: a path, a flag, an enumeration.
    types = {
        name: kind
        for name, kind in get_type_hints(type(args)).items()
        if name not in trl_defaults or str not in (kind, *get_args(kind))
    }
    check_values(values, types)
    for name, allowed in CHOICES.items():
        if values[name] not in allowed:
            raise ValueError(f"{name}={values[name]!r} must be one of {allowed}")
    for name, (other, allowed) in READ_ONLY_WITH.items():
        if values[name] not in (defaults[name], trl_defaults[name]) and values[other] not in allowed:
            raise ValueError(
                f"{name}={values[name]!r} would be ignored with {other}={values[other]!r}; it is read with one of "
                f"{allowed}"
            )
    for name in NEVER_WHOLE:
        setattr(args, name, float(values[name]))
    padding = str(args.pad_to_multiple_of).lower()  # which TRL takes as text, too
    if padding not in ("none", "null", "auto") and not (padding.isdecimal() and int(padding) > 0):
        raise ValueError(
            f"pad_to_multiple_of={args.pad_to_multiple_of!r} must be a whole number of at least 1, 'auto' or None"
        )
    if args.max_steps == 0 or args.max_steps < -1:
        raise ValueError(f"max_steps={args.max_steps!r} must be at least 1, or -1 for num_train_epochs")
    if args.max_completion_length is None and args.loss_type == "dr_grpo":
        raise ValueError("max_completion_length=None must be a number with loss_type='dr_grpo', which divides by it")
    if args.sync_ref_model and not args.beta:
        raise ValueError(f"sync_ref_model=True needs a reference model, which beta={args.beta!r} does without")
    if args.use_liger_kernel and find_spec("liger_kernel") is None:
        raise ImportError("use_liger_kernel=True needs liger-kernel, which is not installed")
    check_reward_weights(args.reward_weights)
    check_batches(args)


def check_batches(args: GRPOConfig) -> None:
    """A rollout, and a batch of evaluation, must be whole prompt groups."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if args.generation_batch_size is None:
        steps = "gradient_accumulation_steps" if args.steps_per_generation is None else "steps_per_generation"
        responses = args.per_device_train_batch_size * processes * getattr(args, steps)
        if args.num_generations and responses % args.num_generations:
            raise ValueError(
                f"{assignments(args, ['per_device_train_batch_size', steps])} on {processes} processes make "
                f"{responses} responses a rollout, which must be a multiple of num_generations={args.num_generations}"
            )
    elif args.steps_per_generation is not None:
        both = assignments(args, ["generation_batch_size", "steps_per_generation"])
        raise ValueError(f"{both}: each follows from the other; set only one")
    group_size = args.num_generations_eval or args.num_generations
    if args.eval_strategy != "no" and group_size and args.per_device_eval_batch_size * processes % group_size:
        name = "num_generations_eval" if args.num_generations_eval else "num_generations"
        raise ValueError(
            f"per_device_eval_batch_size={args.per_device_eval_batch_size} on {processes} processes must be a "
            f"multiple of {name}={group_size}"
        )


def check_reward_weights(weights: Any, reward_funcs: Any = None) -> None:
    """The weights themselves, and that there is one for each of the reward functions where these are known."""
    if weights is None:
        return
    numbers = isinstance(weights, list | tuple) and all(KINDS[float][1](weight) for weight in weights)
    if not numbers or not all(lies_in(weight, "[-1e6, 1e6]") for weight in weights):
        raise ValueError(f"reward_weights={weights!r} must be a list of numbers in [-1e6, 1e6]")
    if reward_funcs is not None:
        functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        if len(weights) != len(functions):
            raise ValueError(
                f"reward_weights={weights!r} must be one for each of the {len(functions)} reward functions"
            )


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
    if args.top_entropy_quantile < 1:
        raise ValueError(
            f"top_entropy_quantile={args.top_entropy_quantile!r} does not go with a policy_loss: most of the tokens "
            "that it selects would be among those that have no loss; it must be 1.0"
        )
    clip = {option.name: option.default for option in fields(args) if option.name in ("epsilon", "epsilon_high")}
    changed = [name for name, default in clip.items() if getattr(args, name) not in (default, None)]
    if changed and not policy_loss.clips_ratios:
        raise ValueError(
            f"{assignments(args, changed)} would be ignored: {type(policy_loss).__name__} clips no ratio; leave "
            f"{clip} as they are"
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


def check_dynamic_sampling(wanted: bool, trl_kwargs: Mapping[str, Any]) -> None:
    if wanted and trl_kwargs.get("environment_factory") is not None:
        raise ValueError(
            "dynamic_sampling=True does not go with environment_factory: the state that an environment is in after "
            "one generation round is gone when the next one resets it"
        )


def check_shrink(options: DynamicSampling | None, args: GRPOConfig) -> None:
    """Refuse `exhausted="shrink"` where places cannot be left out of the loss.

    Raises:
        ValueError: there is an entropy bonus, or DeepSpeed steps on gradients of several rollouts.
    """
    if options is None or options.exhausted != "shrink":
        return
    instead = "set dynamic_sampling_kwargs={'exhausted': 'keep'} or 'error'"
    if args.entropy_coef or args.use_adaptive_entropy:
        raise ValueError(
            f"entropy_coef={args.entropy_coef} and use_adaptive_entropy={args.use_adaptive_entropy}: TRL's entropy "
            f"bonus is a mean per micro-batch, which cannot leave places out; {instead}"
        )
    if args.deepspeed_plugin is not None and args.loss_type not in PER_TOKEN and not one_rollout_a_step(args):
        raise ValueError(
            f"gradient_accumulation_steps={args.gradient_accumulation_steps} takes micro-batches of several rollouts "
            f"of steps_per_generation={args.steps_per_generation}: how much a step must be scaled up for the places "
            "left out is known after its last rollout, and DeepSpeed gives no access to the gradients by then; make "
            f"steps_per_generation a multiple of gradient_accumulation_steps, or {instead}"
        )


def one_rollout_a_step(args: GRPOConfig) -> bool:
    """Whether all micro-batches of each optimiser step come from one rollout, as many of each of its parts."""
    a_step, a_rollout = args.gradient_accumulation_steps, args.steps_per_generation
    return a_rollout % a_step == 0 or (a_step % a_rollout == 0 and a_rollout * args.num_iterations % a_step == 0)

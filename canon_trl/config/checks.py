"""What this package refuses before a model is loaded."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from trl import GRPOConfig

from canon_trl.method import check_values
from canon_trl.policy_losses import PolicyLoss
from canon_trl.sampling import DynamicSampling

# Losses that clip the ratio of every token as PPO does; they differ in what they divide by.
PPO_LOSSES = ("grpo", "bnpo", "dapo", "dr_grpo")
PER_TOKEN = ("dapo", "cispo", "vespo")  # losses that are divided by the tokens that are trained on


def assignments(args: GRPOConfig, names: Iterable[str]) -> str:
    """Fields with their values, for a message."""
    return ", ".join(f"{name}={getattr(args, name)!r}" for name in names)


def check_own_options(args: GRPOConfig) -> None:
    """Refuse values of this package's options that are of another kind than their annotations, or out of bounds."""
    of_trl = {option.name for option in fields(GRPOConfig)}
    own = {option.name: getattr(args, option.name) for option in fields(args) if option.name not in of_trl}
    check_values(own, get_type_hints(type(args), include_extras=True))


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

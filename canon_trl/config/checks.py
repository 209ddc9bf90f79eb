"""Checks of options, made before a model is loaded."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from trl import GRPOConfig

from canon_trl.advantages import ESTIMATORS
from canon_trl.method import Method
from canon_trl.options import check_values
from canon_trl.sampling import DynamicSampling

# Options that choose TRL's own advantage estimator. With another value of the first one, TRL ignores the second.
ESTIMATOR_OPTIONS = ("multi_objective_aggregation", "scale_rewards")

PER_TOKEN = ("dapo", "cispo", "vespo")  # losses that are divided by the number of trained tokens
SHRINK_ALTERNATIVES = "set dynamic_sampling_kwargs={'exhausted': 'keep'} or 'error'"


def assignments(args: GRPOConfig, names: Iterable[str]) -> str:
    """Format fields and their values as `name=value, ...` for a message."""
    return ", ".join(f"{name}={getattr(args, name)!r}" for name in names)


def is_changed(args: GRPOConfig, name: str) -> bool:
    """Whether an option of TRL differs from both TRL's and the config's default."""
    defaults = [option.default for kind in (GRPOConfig, type(args)) for option in fields(kind) if option.name == name]
    return getattr(args, name) not in defaults


def check_ignored(args: GRPOConfig, names: Iterable[str], why: str) -> None:
    """Reject options of TRL that would be ignored and differ from both TRL's and the config's default."""
    if changed := [name for name in names if is_changed(args, name)]:
        raise ValueError(f"{assignments(args, changed)} would be ignored: {why}")


def estimator_of_trl(args: GRPOConfig) -> str | None:
    """Return the estimator that computes what TRL computes with these options; `None` at their defaults."""
    changed = [name for name in ESTIMATOR_OPTIONS if is_changed(args, name)]
    methods = [m for name in changed for m in ESTIMATORS.values() if m.agrees_with.get(name) == getattr(args, name)]
    return methods[0].name if methods else None


def check_trl_estimator(args: GRPOConfig, method: Method) -> None:
    """Reject options of TRL's own estimator that differ from the defaults and from what `method` computes."""
    instead = estimator_of_trl(args)
    choose = "" if instead in (None, method.name) else f"; advantage_estimator={instead!r} computes this"
    why = f"advantage_estimator={method.name!r} replaces TRL's estimator{choose}"
    accepted = {name: (method.agrees_with.get(name), "none") for name in ESTIMATOR_OPTIONS}  # "none" asks for nothing
    check_ignored(args, [name for name in ESTIMATOR_OPTIONS if getattr(args, name) not in accepted[name]], why)


def check_own_options(args: GRPOConfig) -> None:
    """Reject values of this package's options that their annotations do not allow."""
    of_trl = {option.name for option in fields(GRPOConfig)}
    own = {option.name: getattr(args, option.name) for option in fields(args) if option.name not in of_trl}
    check_values(own, get_type_hints(type(args), include_extras=True))


def check_dynamic_sampling(wanted: bool, trl_kwargs: Mapping[str, Any]) -> None:
    if wanted and trl_kwargs.get("environment_factory") is not None:
        raise ValueError(
            "dynamic_sampling=True does not work with environment_factory: each generation round resets the "
            "environments, which loses their state from the round before"
        )


def check_shrink(options: DynamicSampling | None, args: GRPOConfig) -> None:
    """Reject `exhausted="shrink"` if the loss cannot leave out the unfilled places."""
    if options is not None and options.exhausted == "shrink":
        check_can_leave_out(args, SHRINK_ALTERNATIVES)


def check_can_leave_out(args: GRPOConfig, instead: str) -> None:
    """Reject options with which the loss cannot leave out responses.

    Args:
        args: the options.
        instead: what to do instead, for the message.

    Raises:
        ValueError: there is an entropy bonus, or DeepSpeed takes optimiser steps over several rollouts.
    """
    if args.entropy_coef or args.use_adaptive_entropy:
        raise ValueError(
            f"entropy_coef={args.entropy_coef} and use_adaptive_entropy={args.use_adaptive_entropy}: TRL's entropy "
            f"bonus is a mean per micro-batch, which cannot skip positions; {instead}"
        )
    if args.deepspeed_plugin is not None and scales_gradients(args):
        raise ValueError(
            f"gradient_accumulation_steps={args.gradient_accumulation_steps} takes micro-batches of several rollouts "
            f"of steps_per_generation={args.steps_per_generation}. The last rollout decides how to scale such a step, "
            "and DeepSpeed then gives no access to the gradients; make steps_per_generation a multiple of "
            f"gradient_accumulation_steps, or {instead}"
        )


def scales_gradients(args: GRPOConfig) -> bool:
    """Whether leaving responses out scales the gradients of a whole optimiser step."""
    return args.loss_type not in PER_TOKEN and not one_rollout_per_step(args)


def one_rollout_per_step(args: GRPOConfig) -> bool:
    """Whether each optimiser step uses micro-batches of one rollout only, all of them equally often."""
    per_step, per_rollout = args.gradient_accumulation_steps, args.steps_per_generation
    if per_rollout % per_step == 0:
        return True
    return per_step % per_rollout == 0 and per_rollout * args.num_iterations % per_step == 0

"""What this package refuses before a model is loaded."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from trl import GRPOConfig

from canon_trl.options import check_values
from canon_trl.sampling import DynamicSampling

PER_TOKEN = ("dapo", "cispo", "vespo")  # losses that are divided by the tokens that are trained on


def assignments(args: GRPOConfig, names: Iterable[str]) -> str:
    """Fields with their values, for a message."""
    return ", ".join(f"{name}={getattr(args, name)!r}" for name in names)


def check_ignored(args: GRPOConfig, names: Iterable[str], why: str) -> None:
    """Refuse options of TRL that differ from its default and from the config's, where nothing would read them."""
    defaults = {option.name: [option.default] for option in fields(GRPOConfig)}
    for option in fields(args):
        defaults.setdefault(option.name, []).append(option.default)
    if changed := [name for name in names if getattr(args, name) not in defaults[name]]:
        raise ValueError(f"{assignments(args, changed)} would be ignored: {why}")


def check_own_options(args: GRPOConfig) -> None:
    """Refuse values of this package's options that are of another kind than their annotations, or out of bounds."""
    of_trl = {option.name for option in fields(GRPOConfig)}
    own = {option.name: getattr(args, option.name) for option in fields(args) if option.name not in of_trl}
    check_values(own, get_type_hints(type(args), include_extras=True))


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

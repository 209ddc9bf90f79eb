"""Checks of controllers: something must read each knob, and a knob takes one controller."""

import logging
from collections.abc import Sequence
from numbers import Real

from trl import GRPOConfig

from canon_trl.config.loss_stages import LossStages
from canon_trl.controllers.protocol import steered_knob
from canon_trl.method import Method
from canon_trl.options import did_you_mean
from canon_trl.policy_losses.kinds import OnTRL

logger = logging.getLogger(__name__)

UNCLIPPED_LOSSES = ("sapo", "vespo")
KNOBS = ("temperature", "entropy_coef", "epsilon_high")


def by_knob(makers: Sequence[Method]) -> dict[str, Method]:
    """Return the makers of controllers by the knob that each controller steers.

    Raises:
        ValueError: a controller cannot be made with its options, or two controllers steer the same knob.
    """
    found: dict[str, Method] = {}
    for maker in makers:
        try:
            knob = steered_knob(maker)
        except Exception as error:
            raise ValueError(f"controller {maker.name!r}: {error}") from error
        if knob in found:
            raise ValueError(f"controller: {found[knob].name!r} and {maker.name!r} both steer {knob!r}; choose one")
        found[knob] = maker
    return found


def check_controllers(makers: Sequence[Method], args: GRPOConfig, stages: LossStages) -> None:
    """Reject controllers whose knob nothing reads.

    Args:
        makers: the makers of the controllers.
        args: the config.
        stages: the methods in the loss.

    Raises:
        ValueError: names the controller and its knob.
    """
    for knob, maker in by_knob(makers).items():
        if reason := why_not_read(knob, args, stages):
            raise ValueError(f"controller {maker.name!r} steers {knob!r}, {reason}")


def why_not_read(knob: str, args: GRPOConfig, stages: LossStages) -> str | None:
    """Say why nothing reads a knob, for a message; `None` if something does."""
    if knob == "temperature":
        return None
    if knob in ("entropy_coef", "epsilon_high") and stages.whole is not None:
        return f"which policy_loss={stages.whole.name!r} does not read, since it replaces TRL's loss"
    if knob == "entropy_coef":
        return "which use_adaptive_entropy=True already steers" if args.use_adaptive_entropy else None
    if knob == "epsilon_high":
        return why_not_clipped(args, stages)
    owner, _, option = knob.rpartition(".")
    method = next((method for method in stages if method.name == owner), None)
    if method is None:
        options = [f"{each.name}.{name}" for each in stages for name in numbers_of(each)]
        return f"which nothing reads{did_you_mean(knob, [*KNOBS, *options])}; available: {[*KNOBS, *options]}"
    options = numbers_of(method)
    if option not in options:
        return f"which is not a numeric option of {owner!r}{did_you_mean(option, options)}; available: {options}"
    return None


def why_not_clipped(args: GRPOConfig, stages: LossStages) -> str | None:
    """Say why nothing reads `epsilon_high`, for a message; `None` if something does."""
    chosen = stages.policy_loss
    if isinstance(chosen, OnTRL) and not (chosen.clips and chosen.clips_high):
        return f"but {chosen.name!r} clips no ratios{' above 1' if chosen.clips else ''}"
    if args.loss_type in UNCLIPPED_LOSSES:
        return f"but loss_type={args.loss_type!r} clips no ratios"
    if args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations) == 0:
        logger.warning(
            "a controller steers 'epsilon_high', but with one update per rollout no ratio is ever clipped; set "
            "steps_per_generation or num_iterations for several updates per rollout"
        )
    return None


def numbers_of(method: Method) -> list[str]:
    """Return the names of a method's numeric options."""
    return [
        name for name, value in method.all_options.items() if isinstance(value, Real) and not isinstance(value, bool)
    ]

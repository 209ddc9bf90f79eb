"""Options of a run, whatever its method."""

import math
from dataclasses import dataclass, field

from trl import GRPOConfig


@dataclass
class RunConfig(GRPOConfig):
    r"""
    [`~trl.GRPOConfig`] with the options that every trainer of this package has.

    Args:
        reward_time_limit (`float`, *optional*):
            Seconds that a call of a reward function may take; beyond them training stops and names the function.
            Default: no limit.
        resume_with_changes (`bool`, *optional*, defaults to `False`):
            Whether a checkpoint that was made with other options is resumed, with a warning that names them, instead
            of being refused.
    """

    reward_time_limit: float | None = field(
        default=None, metadata={"help": "Seconds that a call of a reward function may take. Default: no limit."}
    )
    resume_with_changes: bool = field(
        default=False, metadata={"help": "Resume a checkpoint that was made with other options, which are named."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        limit = self.reward_time_limit
        if limit is not None and not 0 < limit < math.inf:
            raise ValueError(f"reward_time_limit={limit!r} must be positive and finite, in seconds, or None")

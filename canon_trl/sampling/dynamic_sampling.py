"""Dynamic sampling replaces prompt groups that teach nothing (DAPO, Sec. 3.2,
https://huggingface.co/papers/2503.14476).

A group whose responses all earn the same reward has advantage 0: it costs generation and teaches nothing, and the more
such groups a batch has, the noisier the step. Dynamic sampling replaces them with groups of fresh prompts until the
batch is full.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from canon_trl.advantages.groups import group_mean, has_spread, is_scored
from canon_trl.options import check_options
from canon_trl.paper import Paper
from canon_trl.rounding import rounding_error

PAPER = Paper(
    key="yu2025dapo",
    title="DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
    authors="Qiying Yu and Zheng Zhang and Ruofei Zhu and Yufeng Yuan and Xiaochen Zuo and others",
    id="2503.14476",
)


def group_verdicts(
    rewards: Tensor, accuracy: Tensor, *, lower: float = 0.0, upper: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mark the groups with spread and the groups within the band of accuracy, `(P,)` bool each; both are needed.

    Args:
        rewards: `(P, G)`, NaN where a response was not scored. Spread means two different rewards, see `has_spread`;
            the standard deviation of equal rewards need not be 0 in floating point.
        accuracy: `(P, G)` in [0, 1], the reward that measures accuracy; NaN as above.
        lower, upper: bounds of a group's mean accuracy, inclusive up to the rounding of a mean. With 0 and 1 there is
            no band: only the spread counts, and accuracy may have any range.
    """
    spread = has_spread(rewards, is_scored(rewards)).squeeze(-1)
    if (lower, upper) == (0, 1):
        return spread, torch.ones_like(spread)
    mean = group_mean(accuracy, is_scored(accuracy)).squeeze(-1).nan_to_num(nan=-1.0)
    margin = rounding_error(torch.ones_like(mean))
    return spread, (mean >= lower - margin) & (mean <= upper + margin)


@dataclass(frozen=True, kw_only=True)
class DynamicSampling:
    """The options of dynamic sampling.

    The first round samples the prompts that the run would have sampled anyway. Each further round samples fresh
    prompts: as many as needed at the share of groups kept so far, at most a batch. Groups beyond a full batch are
    dropped.

    Args:
        max_rounds: maximum number of generation rounds per batch.
        lower, upper: band of accuracy, see [`group_verdicts`].
        exhausted: what to do if the batch is not full after the last round. `"shrink"`: train on the groups that were
            kept; the missing ones count neither in the loss nor in its divisors. `"keep"`: fill the batch with
            rejected groups, in sampling order, and train on those as well. `"error"`: stop.

    Raises:
        ValueError: a value is out of its bounds.
    """

    max_rounds: Annotated[int, "[1, inf)"] = 10
    lower: Annotated[float, "[0, 1]"] = 0.0
    upper: Annotated[float, "[0, 1]"] = 1.0
    exhausted: Literal["shrink", "keep", "error"] = "shrink"

    def __post_init__(self) -> None:
        check_options(type(self), vars(self), where="")
        if self.lower > self.upper:
            raise ValueError(f"lower={self.lower!r} must be at most upper={self.upper!r}")

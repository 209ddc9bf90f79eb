"""Dynamic sampling: a batch of prompt groups that all have something to teach (DAPO, Sec. 3.2,
https://huggingface.co/papers/2503.14476).

A group whose responses all earn the same reward has advantage 0, so it costs a rollout and teaches nothing, and the
more of them there are, the noisier the step. Such groups are replaced by groups of fresh prompts until the batch is
full.
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
    """Which groups have spread, and which lie within the band of accuracy; `(P,)` bool each. Kept are those with both.

    Args:
        rewards: `(P, G)`, NaN where a response was not scored. Spread means two different rewards, see `has_spread`:
            the standard deviation of equal rewards need not be 0 in floating point.
        accuracy: `(P, G)` in [0, 1], the reward that measures it; NaN as above.
        lower, upper: the band that the mean accuracy of a group must lie in, both ends included up to the rounding of
            a mean. With 0 and 1 the spread alone decides, whatever measures accuracy and in whatever range.
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

    The first round samples the prompts that the run would have sampled anyway. Each further round samples fresh ones,
    as many as the share kept so far suggests is enough, at most a batch; groups beyond a full batch are dropped.

    Args:
        max_rounds: generation rounds for one batch.
        lower, upper: the band of accuracy, see [`group_verdicts`].
        exhausted: what to do when the rounds run out before the batch is full. `"shrink"`: train on what was kept; the
            places left over have no part in the loss and its divisors. `"keep"`: fill them with groups that were
            sampled and not kept, the first ones first, and train on those as well. `"error"`: stop.

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

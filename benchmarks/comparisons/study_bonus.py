"""The baseline that presumes a direction: Dr.GRPO on the reward plus a fixed bonus for one half of every group.

CANON-Inter adds half of the measured gap between the halves to Dr.GRPO's advantage. Here the gap is a constant, chosen
in advance: a positive one favours the half in which the metric is higher.
"""

from canon_trl import requires_metrics
from canon_trl.advantages import dr_grpo_advantage, split_by_metric
from canon_trl.rollout import Rollout


def with_bonus(rollout: Rollout, metric: str, bonus: float):
    higher = split_by_metric(rollout.metrics[metric], rollout.valid)
    return dr_grpo_advantage(rollout.rewards + bonus * higher)


@requires_metrics("length")
def length_bonus(rollout: Rollout, *, bonus: float):
    """Dr.GRPO with a bonus for the longer half."""
    return with_bonus(rollout, "length", bonus)


@requires_metrics("surprisal")
def surprisal_bonus(rollout: Rollout, *, bonus: float):
    """Dr.GRPO with a bonus for the half of higher surprisal."""
    return with_bonus(rollout, "surprisal", bonus)

"""OPO, the on-policy optimal reward baseline (https://huggingface.co/papers/2505.23585)."""

from torch import Tensor

from canon_trl.advantages.groups import as_float, has_spread, is_scored, zero_invalid
from canon_trl.paper import Paper

PAPER = Paper(
    key="hao2025onpolicy",
    title="On-Policy RL with Optimal Reward Baseline",
    authors="Yaru Hao and Li Dong and Xun Wu and Shaohan Huang and Zewen Chi and Furu Wei",
    id="2505.23585",
    code="microsoft/LMOps",
)


def opo_advantage(rewards: Tensor, lengths: Tensor) -> Tensor:
    """Subtract the length-weighted mean reward of the group, the baseline with the least gradient variance.

        A_i = r_i - sum_j(L_j * r_j) / sum_j(L_j)

    Args:
        rewards: `(P, G)`; NaN marks a response that no reward function could score.
        lengths: `(P, G)` in tokens; the true length, also of a response that is masked as truncated.

    Returns:
        `(P, G)` in the dtype of `rewards`; 0 for unscored responses and in groups with equal rewards, fewer than two
        scored responses or no token. (The reference gives the raw reward to a group of one, and NaN without a token.)
    """
    scored = as_float(rewards)
    valid = is_scored(scored)
    weights = as_float(lengths).masked_fill(~valid, 0.0)
    total = weights.sum(dim=-1, keepdim=True)
    baseline = (weights * scored.nan_to_num()).sum(dim=-1, keepdim=True) / total
    comparable = has_spread(scored, valid) & (total > 0)
    return zero_invalid(scored - baseline, valid & comparable, like=rewards)

"""REINFORCE++ with baseline (https://huggingface.co/papers/2501.03262)."""

from torch import Tensor

from canon_trl.advantages.groups import as_float, group_mean, has_spread, is_scored, zero_invalid
from canon_trl.paper import Paper

PAPER = Paper(
    key="hu2025reinforce",
    title="REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Normalization",
    authors="Jian Hu and Jason Klein Liu and Haotian Xu and Wei Shen",
    id="2501.03262",
)


def reinforce_pp_baseline_advantage(rewards: Tensor, lengths: Tensor) -> Tensor:
    """Centre by group, then standardise over all tokens of the batch, so that the scale is global, not per prompt.

        A'_i = r_i - mean(r)                                    within the group        Eq. 6
        A_i  = (A'_i - mean_t(A')) / sqrt(var_t(A') + 1e-8)     over the whole batch    Eq. 7

    mean_t and var_t are over the n tokens of the whole batch. Each token has the value of its response, so a response
    counts `lengths` times. The variance has divisor n - 1, the mean n + 1e-8.

    Departure from the paper: this follows verl's code. The paper adds a constant of unstated size to the deviation,
    outside the root, and takes mean and deviation over the responses (Appendix B.2), which is the same if all have the
    same length.

    Args:
        rewards: `(P, G)`; NaN marks a response that no reward function could score.
        lengths: `(P, G)` in tokens.

    Returns:
        `(P, G)` in the dtype of `rewards`, the value of every token in the response; 0 for unscored responses, in
        groups with fewer than two scored responses (the reference keeps their raw reward) and if the batch has fewer
        than two tokens (the reference raises).
    """
    scored = as_float(rewards)
    valid = is_scored(scored) & (is_scored(scored).sum(dim=-1, keepdim=True) > 1)
    centred = (scored - group_mean(scored, valid)).masked_fill(~(valid & has_spread(scored, valid)), 0.0)
    tokens = as_float(lengths).masked_fill(~valid, 0.0)
    count = tokens.sum()
    deviation = centred - (tokens * centred).sum() / (count + 1e-8)
    variance = (tokens * deviation**2).sum() / (count + 1e-8) * (count / (count - 1))
    return zero_invalid(deviation * (variance + 1e-8).rsqrt(), valid & (count > 1), like=rewards)

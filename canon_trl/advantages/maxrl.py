"""MaxRL, maximum likelihood reinforcement learning (https://huggingface.co/papers/2602.02710)."""

from torch import Tensor

from canon_trl.advantages.groups import as_float, group_mean, has_spread, is_scored, zero_invalid
from canon_trl.paper import Paper

PAPER = Paper(
    key="tajwar2026maximum",
    title="Maximum Likelihood Reinforcement Learning",
    authors="Fahim Tajwar and Guanning Zeng and Yueer Zhou and Yuda Song and Daman Arora and Yiding Jiang and "
    "Jeff Schneider and Ruslan Salakhutdinov and Haiwen Feng and Andrea Zanette",
    id="2602.02710",
    code="tajwarfahim/maxrl",
)


def maxrl_advantage(rewards: Tensor) -> Tensor:
    """Divide the centred reward by the group's mean reward, so that the step follows the log of the success rate.

        A_i = (r_i - mean(r)) / mean(r)

    With K of G answers right, 1 for right and 0 for wrong, a right answer gets (G - K) / K and a wrong one -1. Their
    average over the group is the mean score of the right answers minus the mean score of all. Its expectation is the
    gradient of -sum_{k=1..G-1} (1 - p)^k / k, the first terms of ln p, where Dr.GRPO follows p alone, so a prompt that
    is rarely solved weighs more. (The paper has G terms, of the estimator without a baseline. With the baseline, a
    group without a right answer would have to push all its answers away to keep the last term; here and in the
    authors' code it gets 0.)

    Args:
        rewards: `(P, G)`, at least 0; NaN marks a response that no reward function could score.

    Returns:
        `(P, G)` in the dtype of `rewards`; 0 for unscored responses and in groups with equal rewards, fewer than two
        scored responses or a mean that is not positive. (The authors' code adds 1e-6 to the divisor and turns a group
        of one into its reward times 1e6; the implementation in prime-rl agrees with this one.)
    """
    scored = as_float(rewards)
    valid = is_scored(scored)
    mean = group_mean(scored, valid)
    comparable = has_spread(scored, valid) & (mean > 0)
    return zero_invalid((scored - mean) / mean, valid & comparable, like=rewards)

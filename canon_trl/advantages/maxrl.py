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
    """Divide the centred reward by the group's mean reward, so that training follows the log of the success rate.

        A_i = (r_i - mean(r)) / mean(r)

    With rewards 1 and 0 and K of G answers right, a right answer gets (G - K) / K and a wrong one -1. The policy
    gradient of the group is then the mean score function of the right answers minus that of all answers. Its
    expectation is the gradient of -sum_{k=1..G-1} (1 - p)^k / k, the first terms of ln p, while Dr.GRPO follows p. So
    prompts that are rarely solved weigh more. (The paper has G terms, for the estimator without a baseline. With the
    baseline, the last term would require a group without a right answer to push all its answers away; here and in the
    authors' code, such a group gets 0.)

    Use it if many prompts are rarely solved and should count. Avoid it with noisy rewards: one lucky answer in 16 gets
    an advantage of 15.

    Args:
        rewards: `(P, G)`, at least 0; NaN marks a response that no reward function could score.

    Returns:
        `(P, G)` in the dtype of `rewards`; 0 for unscored responses and in groups with equal rewards, fewer than two
        scored responses or a mean that is not positive. (The authors' code adds 1e-6 to the divisor and gives a group
        of one its reward times 1e6; the implementation in prime-rl agrees with this one.)
    """
    scored = as_float(rewards)
    valid = is_scored(scored)
    mean = group_mean(scored, valid)
    comparable = has_spread(scored, valid) & (mean > 0)
    return zero_invalid((scored - mean) / mean, valid & comparable, like=rewards)

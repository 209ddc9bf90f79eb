"""RLOO, REINFORCE leave-one-out (https://huggingface.co/papers/2402.14740). Edge cases are those of `grpo.py`."""

from torch import Tensor

from canon_trl.advantages.groups import as_float, group_mean, has_spread, is_scored, zero_invalid
from canon_trl.paper import Paper

PAPER = Paper(
    key="ahmadian2024back",
    title="Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from Human Feedback in LLMs",
    authors=r"Arash Ahmadian and Chris Cremer and Matthias Gall{\'{e}} and Marzieh Fadaee and Julia Kreutzer and "
    r"Olivier Pietquin and Ahmet {\"{U}}st{\"{u}}n and Sara Hooker",
    id="2402.14740",
)


def rloo_advantage(rewards: Tensor) -> Tensor:
    """RLOO: the reward minus the mean reward of the other responses (Sec. 2.3).

        A_i = r_i - mean(r_j, j != i) = n / (n - 1) * (r_i - mean(r))

    n is the number of scored responses in the group.

    Args:
        rewards: `(P, G)`; NaN marks a response that no reward function could score.

    Returns:
        `(P, G)` in the dtype of `rewards`; exactly 0 for unscored responses and in groups with equal rewards or fewer
        than two scored responses.
    """
    scored = as_float(rewards)
    valid = is_scored(scored)
    count = valid.sum(dim=-1, keepdim=True)
    leave_one_out = count / (count - 1) * (scored - group_mean(scored, valid))
    return zero_invalid(leave_one_out, valid & has_spread(scored, valid), like=rewards)

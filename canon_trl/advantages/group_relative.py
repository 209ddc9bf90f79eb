"""Advantages relative to the prompt group: GRPO, Dr.GRPO and RLOO.

All compare a response with the mean reward of the responses to the same prompt; they differ in what they divide by.
Shapes: `rewards` is `(P, G)`, one prompt group a row; NaN marks a response that no reward function could score. It
leaves the mean and gets advantage 0, as does a group with fewer than two scored responses. (The reference
implementations hand back the raw reward of a group of one, a case that training never meets.) A group whose rewards
are all equal, decided by equality, gets exactly 0: seven rewards of 0.1 have a float32 mean that is not quite 0.1, and
what is left over would be scaled up to an advantage by a deviation near zero, or to a whole step by Adam.
"""

from torch import Tensor

from canon_trl.advantages.groups import as_float, group_mean, group_std, has_spread, is_scored, zero_invalid


def grpo_advantage(rewards: Tensor, *, eps: float = 1e-6) -> Tensor:
    """GRPO: the standardised reward within the group (https://huggingface.co/papers/2402.03300, Sec. 4.1.2).

        A_i = (r_i - mean(r)) / (std(r) + eps)

    std is the sample standard deviation, with divisor n - 1. `eps` is 1e-6 in verl and 1e-4 in TRL.

    Returns:
        `(P, G)` in the dtype of `rewards`.
    """
    scored = as_float(rewards)
    valid = is_scored(scored)
    standardised = (scored - group_mean(scored, valid)) / (group_std(scored, valid) + eps)
    return zero_invalid(standardised, valid & has_spread(scored, valid), like=rewards)


def dr_grpo_advantage(rewards: Tensor) -> Tensor:
    """Dr.GRPO: the centred reward, without division (https://huggingface.co/papers/2503.20783, Sec. 3.2).

        A_i = r_i - mean(r)

    Returns:
        `(P, G)` in the dtype of `rewards`.
    """
    scored = as_float(rewards)
    valid = is_scored(scored)
    return zero_invalid(scored - group_mean(scored, valid), valid & has_spread(scored, valid), like=rewards)


def rloo_advantage(rewards: Tensor) -> Tensor:
    """RLOO: the reward minus the mean of the others (https://huggingface.co/papers/2402.14740, Sec. 2.3).

        A_i = r_i - mean(r_j, j != i) = n / (n - 1) * (r_i - mean(r))

    n is the number of scored responses of the group.

    Returns:
        `(P, G)` in the dtype of `rewards`.
    """
    scored = as_float(rewards)
    valid = is_scored(scored)
    count = valid.sum(dim=-1, keepdim=True)
    leave_one_out = count / (count - 1) * (scored - group_mean(scored, valid))
    return zero_invalid(leave_one_out, valid & has_spread(scored, valid), like=rewards)

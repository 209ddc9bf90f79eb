"""Pass@k training (https://huggingface.co/papers/2508.10751)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from canon_trl.advantages.groups import as_float, is_scored, zero_invalid
from canon_trl.method import Method
from canon_trl.options import check_arguments
from canon_trl.paper import Paper

PAPER = Paper(
    key="chen2025passk",
    title="Pass@k Training for Adaptively Balancing Exploration and Exploitation of Large Reasoning Models",
    authors="Zhipeng Chen and Xiaobo Qin and Youbin Wu and Yue Ling and Qinghao Ye and Wayne Xin Zhao and Guang Shi",
    id="2508.10751",
    code="RUCAIBox/Passk_Training",
)

Draws = Annotated[int, "[1, inf)"]


def pass_at_k_advantage(rewards: Tensor, *, k: Draws) -> Tensor:
    """Reward a response for the sets of k that it makes succeed, so that training raises pass@k instead of pass@1.

        F = C(n, k) / C(N, k)                        n of N responses are wrong; F: chance that k drawn ones all are
        S = sqrt(F * (1 - F))
        A_i = F / S                                  for a right response
        A_i = (F - C(n-1, k-1) / C(N-1, k-1)) / S    for a wrong one

    This is GRPO over all sets of k responses, where the reward of a set is its best reward. A response gets the mean
    advantage of the sets that contain it. The advantages of a group sum to 0. k = 1 is GRPO with the population
    deviation. As k grows, prompts that are rarely solved weigh more. A group with fewer than k wrong responses gets 0,
    since all of its sets succeed.

    The policy gradient of S * A * k * N / (N - k), averaged over the group, is an unbiased estimate of the gradient of
    pass@k. Division by S only changes the weight of each prompt. The formula is in the README of the authors' code,
    which adds 1e-6 to S.

    Args:
        rewards: `(P, G)`, 1 for right and 0 for wrong; NaN marks a response that no reward function could score.
        k: number of responses per set, from 1 to G - 1; with k = G there is only one set and nothing to compare.

    Returns:
        `(P, G)` in the dtype of `rewards`; 0 for unscored responses and in groups with fewer than k scored responses,
        with fewer than k wrong ones or without a right one.

    Raises:
        ValueError: `k` is not a whole number from 1 to G.
    """
    check_arguments(pass_at_k_advantage, k=k)
    if k > rewards.shape[-1]:
        raise ValueError(f"k={k} must be at most {rewards.shape[-1]}, the number of responses in a group")
    scored = as_float(rewards)
    valid = is_scored(scored)
    right = scored == 1
    total = valid.sum(dim=-1, keepdim=True).double()
    wrong = (valid & ~right).sum(dim=-1, keepdim=True)
    drawn = torch.arange(1, k, device=rewards.device)
    others_fail = ((wrong - drawn) / (total - drawn)).prod(dim=-1, keepdim=True)  # 0 if 0 < wrong < k
    all_fail = wrong / total * others_fail
    deviation = (all_fail * (1 - all_fail)).sqrt()
    advantages = torch.where(right, all_fail, all_fail - others_fail) / deviation
    comparable = (total >= k) & (deviation > 0)
    return zero_invalid(advantages.to(scored.dtype), valid & comparable, like=rewards)


def pass_at_k_estimator(rewards: Tensor, *, k: Draws) -> Tensor:
    """Reward a response for the sets of k that it makes succeed, so that training raises pass@k instead of pass@1.

        F = C(n, k) / C(N, k)                        n of N responses are wrong; F: chance that k drawn ones all are
        S = sqrt(F * (1 - F))
        A_i = F / S                                  for a right response
        A_i = (F - C(n-1, k-1) / C(N-1, k-1)) / S    for a wrong one

    k = 1 is GRPO with the population deviation. As k grows, prompts that are rarely solved weigh more. A group with
    fewer than k wrong responses gets 0, since all of its sets succeed.

    [`pass_at_k_advantage`] has the details. k must be less than `num_generations`: with k = G there is only one set
    and nothing to compare. If evaluation samples fewer than k responses per prompt, its advantages are 0.

    Use it if one right answer among k is enough: for exploration, or with a verifier at inference time. Avoid it if
    most prompts are already solved most of the time; these then stop teaching.
    """
    return torch.zeros_like(rewards) if rewards.shape[-1] < k else pass_at_k_advantage(rewards, k=k)


@dataclass(frozen=True, eq=False)
class PassAtK(Method):
    """Pass@k training as an estimator: the option `k` decides how many responses a group needs."""

    @property
    def smallest_group(self) -> int:
        return int(self.all_options.get("k", 1)) + 1

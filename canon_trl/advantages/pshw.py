"""PSHW, policy-specific hardness weighting (https://huggingface.co/papers/2506.18330)."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from torch import Tensor

from canon_trl.advantages.groups import as_float, group_mean, has_spread, is_scored, zero_invalid
from canon_trl.method import Method
from canon_trl.options import check_arguments
from canon_trl.paper import Paper

PAPER = Paper(
    key="wu2025confucius3",
    title="Confucius3-Math: A Lightweight High-Performance Reasoning LLM for Chinese K-12 Mathematics Learning",
    authors="Lixin Wu and Na Cai and Qiao Cheng and Jiachen Wang and Yitao Duan",
    id="2506.18330",
)


def pshw_advantage(
    rewards: Tensor, *, alpha: Annotated[float, "[-1e6, 0.5)"] = -0.256, low: Literal[-1, 0] = -1
) -> Tensor:
    """Weight prompt groups by difficulty for the current policy: the rarer a right answer, the larger the step.

        A_i = (r_i - mu) * (1 + alpha * (mu - 1))    mu = mean(r), with r = 1 for right and -1 for wrong (Eq. 2, 3)

    With the paper's alpha the factor falls from 1.512 if no answer is right to 1 if all are. The paper writes it as
    alpha * mu + 1.256; here the constant is 1 - alpha, so that the factor is 1 at mu = 1 for every alpha.

    `low=0` takes rewards 1 and 0, and first maps them to 1 and -1.

    The paper does not divide by a standard deviation. It does not divide the sum of token losses by the response's
    length (`loss_type="dr_grpo"` or `"dapo"`), clips as DAPO does, and drops groups with equal rewards.

    Use it for a mild preference for hard prompts: the factor is at most 1.5, compared with 1 / mean(r) for `maxrl`.

    Args:
        rewards: `(P, G)`, 1 for right and `low` for wrong; NaN marks a response that no reward function could score.
        alpha: slope of the weight; 0 is Dr.GRPO, and above 0 easy groups weigh more. Below 0.5 the weight is positive.
        low: reward of a wrong answer. With 0, advantages are twice those of centred rewards 1 and 0.

    Returns:
        `(P, G)` in the dtype of `rewards`; 0 for unscored responses and in groups with equal rewards or fewer than two
        scored ones. (There is no released training code.)

    Raises:
        ValueError: `alpha` is out of its bounds, or `low` is neither -1 nor 0.
    """
    check_arguments(pshw_advantage, alpha=alpha, low=low)
    scored = as_float(rewards)
    if low == 0:
        scored = 2 * scored - 1
    valid = is_scored(scored)
    mean = group_mean(scored, valid)
    weighted = (scored - mean) * (1 + alpha * (mean - 1))
    return zero_invalid(weighted, valid & has_spread(scored, valid), like=rewards)


@dataclass(frozen=True, eq=False)
class HardnessWeighting(Method):
    """PSHW as an estimator: the option `low` decides which rewards the trainer accepts."""

    def with_options(self, options: dict[str, Any], *, where: str) -> Method:
        method = super().with_options(options, where=where)
        return replace(method, reward_range="{0, 1}" if method.all_options["low"] == 0 else "{-1, 1}")

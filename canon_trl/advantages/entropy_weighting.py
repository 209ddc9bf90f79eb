"""GRPO-S and GTPO, dynamic entropy weighting (https://huggingface.co/papers/2508.04349).

The equations are numbered as in the version submitted to ICML 2026. There is no released code. (Another paper,
2508.03772, also calls its method GTPO.)

The paper leaves open which shaped rewards s are standardised together, so the option `standardise` chooses:

    "with_zeros"    the right ones' s with 0 for each wrong one, and the wrong ones' s with 0 for each right one.
                    Sec. 2.3 normalises "over the G sequences in the group", and Eq. 3, 5 and 9 define these zeros.
    "together"      all s (Eq. 46, in the proof that GRPO-S converges to GRPO).
    "apart"         each set alone, as Eq. 6 says. Then each set has mean 0, so the advantages no longer follow the
                    rewards, and neither weight changes the result, while in Fig. 5 the weights do.

The paper's setup also says that "entropy is clipped" at 0.2 and 0.28. Those are DAPO's bounds of the probability
ratio (`epsilon`, `epsilon_high`); here entropies only have a floor, which 1/H needs.
"""

from typing import Literal

import torch
from torch import Tensor

from canon_trl.advantages.groups import as_float, group_mean, group_std, has_spread, is_scored, zero_invalid
from canon_trl.options import NotNegative, Positive, check_arguments
from canon_trl.paper import Paper
from canon_trl.rollout import Rollout

PAPER = Paper(
    key="tan2025gtpo",
    title="GTPO and GRPO-S: Token and Sequence-Level Reward Shaping with Policy Entropy",
    authors="Hongze Tan and Zihan Wang and Jianfei Pan and Jinghao Lin and Hao Wang and Yifan Wu and Tao Chen and "
    "Zhihang Zheng and Zhihao Tang and Haihua Yang",
    id="2508.04349",
)

Standardise = Literal["with_zeros", "together", "apart"]


def grpo_s_advantage(
    rewards: Tensor,
    entropy: Tensor,
    *,
    reward_weight: Positive = 1.0,
    entropy_weight: NotNegative = 0.1,
    standardise: Standardise = "with_zeros",
    floor: Positive = 1e-6,
    train_groups_without_spread: bool = False,
) -> Tensor:
    """GRPO-S: reward uncertain right responses more, and punish confident wrong ones more.

        s_i = b1 + b2 * H_i / mean(H over right ones)            for a right response (Eq. 8, 9)
        s_i = -b1 - b2 * (1/H_i) / mean(1/H over wrong ones)     for a wrong one
        A_i = (s_i - mean(s)) / std(s)                           over the group

    With equal entropies, or with b2 = 0, this is GRPO, except for `standardise="apart"`, which then gives 0.

    Args:
        rewards: `(P, G)`, 1 for right and 0 for wrong; NaN marks a response that no reward function could score.
        entropy: `(P, G)`, the H above: mean token entropy in nats under the sampling policy; NaN marks an invalid
            response.
        reward_weight, entropy_weight: b1 and b2.
        standardise: the s over which mean and sample standard deviation are taken.
        floor: lower bound of the entropies.
        train_groups_without_spread: whether to train on groups that are all right or all wrong. They carry no
            information on correctness, yet the differences of their entropies are scaled to a deviation of 1.

    Returns:
        `(P, G)` in the dtype of `rewards`; 0 for invalid responses, where the s do not differ, and in groups with
        equal rewards unless those are trained on.

    Raises:
        ValueError: an option is not allowed, or the shapes differ.
    """
    check_arguments(
        grpo_s_advantage,
        reward_weight=reward_weight,
        entropy_weight=entropy_weight,
        standardise=standardise,
        floor=floor,
        train_groups_without_spread=train_groups_without_spread,
    )
    if rewards.shape != entropy.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and entropy {tuple(entropy.shape)} must have the same shape")
    scored = as_float(rewards)
    valid = is_scored(scored) & is_scored(entropy)
    if not train_groups_without_spread:
        valid = valid & has_spread(scored, valid)
    right, wrong = valid & (scored == 1), valid & (scored != 1)
    shaped = shaped_rewards(as_float(entropy).clamp(min=floor), right, wrong, reward_weight, entropy_weight)
    return zero_invalid(standardised(shaped, right, wrong, standardise), valid, like=rewards)


def grpo_s_estimator(
    rollout: Rollout,
    *,
    reward_weight: Positive = 1.0,
    entropy_weight: NotNegative = 0.1,
    standardise: Standardise = "with_zeros",
    floor: Positive = 1e-6,
    train_groups_without_spread: bool = False,
) -> Tensor:
    """GRPO-S: reward uncertain right responses more, and punish confident wrong ones more.

        s_i = b1 + b2 * H_i / mean(H over right ones)            for a right response (Eq. 8, 9)
        s_i = -b1 - b2 * (1/H_i) / mean(1/H over wrong ones)     for a wrong one
        A_i = (s_i - mean(s)) / std(s)                           over the group

    H is the mean token entropy of a response under the policy that sampled it, b1 is `reward_weight` and b2
    `entropy_weight`. With equal entropies, and with b2 = 0, this is GRPO. In a group with few wrong responses, a right
    one of low entropy can get a negative advantage.

    The paper leaves open which s enter mean and std. `"with_zeros"` takes the s of right responses with 0 for each
    wrong one, and the s of wrong responses with 0 for each right one (Sec. 2.3); `"together"` takes all s (Eq. 46);
    `"apart"` takes each set alone, as Eq. 6 says for the token-level GTPO. Then each set has mean 0, so right and
    wrong responses are pushed alike on average, and neither weight changes the result. Do not train with it: the
    advantages no longer follow the rewards.

    The paper's ratio is the mean of the token ratios (Eq. 11). `importance_sampling_level="sequence"` takes their
    geometric mean, which its Appendix C also offers. Groups that are all right or all wrong get 0, since only the
    differences of their entropies would be left; `train_groups_without_spread` trains on them.

    Use it with care, to reinforce uncertain right answers more than certain ones, if entropy may grow. If certain
    answers are mostly right, it works against the reward.
    """
    return grpo_s_advantage(
        rollout.rewards,
        rollout.metrics["entropy"],
        reward_weight=reward_weight,
        entropy_weight=entropy_weight,
        standardise=standardise,
        floor=floor,
        train_groups_without_spread=train_groups_without_spread,
    )


def gtpo_advantage(
    rewards: Tensor,
    entropies: Tensor,
    mask: Tensor,
    *,
    reward_weight: Positive = 1.0,
    entropy_weight: NotNegative = 0.1,
    standardise: Standardise = "with_zeros",
    scope: Literal["batch", "group"] = "batch",
    floor: Positive = 1e-6,
    train_groups_without_spread: bool = False,
) -> Tensor:
    """GTPO: reward uncertain tokens of right responses more, and punish confident tokens of wrong ones more.

        s_it = a1 + a2 * H_it / mean(H_t over right responses)           in a right response (Eq. 3)
        s_it = -a1 - a2 * (1/H_it) / mean(1/H_t over wrong responses)    in a wrong one (Eq. 5)
        A_it = (s_it - mean(s)) / std(s)                                 (Eq. 6)

    A token is compared with tokens at the same position in the group's other right, or wrong, responses that reach
    this position. H is the entropy of the policy that sampled the responses, a1 is `reward_weight` and a2
    `entropy_weight`. With equal entropies, A is the reward of each token, standardised over tokens.

    `standardise` chooses the s that enter mean and std, as for `grpo_s`; do not train with `"apart"`. `scope` takes
    them from the whole batch or from each group. The paper says both; its discussion calls the implementation
    batch-level. Groups that are all right or all wrong get 0 and do not enter mean and std, unless
    `train_groups_without_spread` is set.

    Every rank receives the entropies and the mask of all tokens, 8 bytes per token of the widest response.

    Use it like `grpo_s`, at the token level. It needs the entropies of all tokens, so long responses cost memory.

    Args:
        rewards: `(P, G)`, 1 for right and 0 for wrong; NaN marks a response that no reward function could score.
        entropies: `(P, G, T)`, in nats, under the sampling policy; a token whose entropy is NaN gets 0.
        mask: `(P, G, T)`, True on the tokens that the model wrote.
        reward_weight, entropy_weight: a1 and a2.
        standardise: the s that enter mean and sample standard deviation.
        scope: whether these are the s of the batch or of each group.
        floor: lower bound of the entropies.
        train_groups_without_spread: as for [`grpo_s_advantage`]; such groups do not enter mean and deviation either.

    Returns:
        `(P, G, T)` in the dtype of `rewards`; 0 off the mask, for unscored responses, where the s do not differ, and
        in groups with equal rewards unless those are trained on.

    Raises:
        ValueError: an option is not allowed, or the shapes differ.
    """
    check_arguments(
        gtpo_advantage,
        reward_weight=reward_weight,
        entropy_weight=entropy_weight,
        standardise=standardise,
        scope=scope,
        floor=floor,
        train_groups_without_spread=train_groups_without_spread,
    )
    if entropies.shape != mask.shape or entropies.shape[:-1] != rewards.shape:
        raise ValueError(
            f"entropies {tuple(entropies.shape)} and mask {tuple(mask.shape)} must have the shape of rewards "
            f"{tuple(rewards.shape)} and one dimension of tokens"
        )
    scored = as_float(rewards)
    trained = is_scored(scored)
    if not train_groups_without_spread:
        trained = trained & has_spread(scored, trained)
    valid = mask.bool() & ~entropies.isnan() & trained.unsqueeze(-1)
    # Compared with the responses of the group at each position: (P, T, G).
    by_position = as_float(entropies).clamp(min=floor).transpose(1, 2)
    right = (valid & (scored == 1).unsqueeze(-1)).transpose(1, 2)
    wrong = (valid & (scored != 1).unsqueeze(-1)).transpose(1, 2)
    shaped = shaped_rewards(by_position, right, wrong, reward_weight, entropy_weight)
    rows = (1 if scope == "batch" else len(rewards), -1)
    advantages = standardised(shaped.reshape(rows), right.reshape(rows), wrong.reshape(rows), standardise)
    return zero_invalid(advantages.view_as(shaped).transpose(1, 2), valid, like=rewards)


def shaped_rewards(
    entropies: Tensor, right: Tensor, wrong: Tensor, reward_weight: float, entropy_weight: float
) -> Tensor:
    """The s of responses or tokens, compared along the last dimension (Eq. 3, 5 and 9)."""
    certain = 1 / entropies
    gain = reward_weight + entropy_weight * entropies / group_mean(entropies, right)
    loss = -reward_weight - entropy_weight * certain / group_mean(certain, wrong)
    return torch.where(right, gain, loss)


def standardised(shaped: Tensor, right: Tensor, wrong: Tensor, how: Standardise) -> Tensor:
    """Standardise shaped rewards along the last dimension."""
    valid = right | wrong
    if how == "together":
        return in_deviations(shaped, valid)
    with_zeros = how == "with_zeros"
    gains = in_deviations(shaped.masked_fill(wrong, 0.0), valid if with_zeros else right)
    losses = in_deviations(shaped.masked_fill(right, 0.0), valid if with_zeros else wrong)
    return torch.where(right, gains, losses)


def in_deviations(values: Tensor, mask: Tensor) -> Tensor:
    """Standardise values by mean and deviation over `mask`; 0 where the values there do not differ."""
    scaled = (values - group_mean(values, mask)) / group_std(values, mask)
    return scaled.masked_fill(~has_spread(values, mask), 0.0)

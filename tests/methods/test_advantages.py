"""Hand-computed cases, reductions between methods, and properties that all estimators share."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from canon_trl.advantages import (
    a_grae_advantage,
    canon_advantage,
    dr_grpo_advantage,
    grpo_advantage,
    inter_group_advantage,
    intra_group_advantage,
    maxrl_advantage,
    nsr_advantage,
    opo_advantage,
    optimal_value,
    psr_advantage,
    reinforce_pp_baseline_advantage,
    rloo_advantage,
    split_by_metric,
    w_reinforce_advantage,
)
from canon_trl.advantages.canon import canon_statistics

NAN = float("nan")


def lengths_of(rewards: Tensor) -> Tensor:
    """Lengths that depend only on the position."""
    return (torch.arange(rewards.shape[-1]) % 5 + 1).expand(rewards.shape)


ESTIMATORS = {
    "canon_inter": lambda rewards: canon_advantage(rewards, lengths_of(rewards), mu=1.0),
    "canon_intra": lambda rewards: canon_advantage(rewards, lengths_of(rewards), mu=0.0),
    "canon_mixed": lambda rewards: canon_advantage(rewards, lengths_of(rewards), mu=0.3),
    "grpo": grpo_advantage,
    "dr_grpo": dr_grpo_advantage,
    "rloo": rloo_advantage,
    "opo": lambda rewards: opo_advantage(rewards, lengths_of(rewards)),
    "reinforce_pp_baseline": lambda rewards: reinforce_pp_baseline_advantage(rewards, lengths_of(rewards)),
}
GROUP_LOCAL = {name: function for name, function in ESTIMATORS.items() if name != "reinforce_pp_baseline"}

BOUNDED = {
    "a_grae": a_grae_advantage,
    "a_grae_centred": lambda rewards: a_grae_advantage(rewards, scale=False, attenuation=0.5),
    "a_grae_released": lambda rewards: a_grae_advantage(rewards, form="released"),
    "maxrl": maxrl_advantage,
    "psr": psr_advantage,
    "nsr": nsr_advantage,
    "w_reinforce": w_reinforce_advantage,
}
ALL = ESTIMATORS | BOUNDED


def admissible(name: str, rewards: Tensor) -> Tensor:
    """Map the rewards into [0, 1] for methods that need it."""
    return (rewards + 2) / 4 if name in BOUNDED else rewards


def close(got: Tensor, want: Tensor | list, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), atol=tolerance, rtol=tolerance)


@st.composite
def reward_tables(draw, even: bool = False, scored: bool = False) -> Tensor:
    groups = draw(st.integers(1, 5))
    size = draw(st.sampled_from([2, 4, 8]) if even else st.integers(2, 9))
    numbers = st.floats(-2, 2, width=32)
    entry = numbers if scored else st.one_of(numbers, numbers, numbers, st.just(NAN))
    values = draw(st.lists(entry, min_size=groups * size, max_size=groups * size))
    return torch.tensor(values, dtype=torch.float64).view(groups, size)


def metrics_for(data: st.DataObject, rewards: Tensor) -> Tensor:
    values = data.draw(st.lists(st.integers(0, 5), min_size=rewards.numel(), max_size=rewards.numel()))
    return torch.tensor(values, dtype=torch.float64).view(rewards.shape)


# Regrouping, by hand


def test_split_puts_the_upper_half_higher():
    metric = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    assert split_by_metric(metric).tolist() == [[False, True, False, True]]


def test_split_keeps_order_on_ties_and_gives_odd_groups_a_larger_higher_half():
    assert split_by_metric(torch.tensor([[3, 3, 3, 3, 3]])).tolist() == [[False, False, True, True, True]]
    assert split_by_metric(torch.tensor([[2.0, 1.0, 2.0]])).tolist() == [[True, False, True]]


def test_split_ignores_invalid_responses():
    metric = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0, 0.0]])
    valid = torch.tensor([[False, True, True, True, True, False]])
    assert split_by_metric(metric, valid).tolist() == [[False, False, False, True, True, False]]
    assert split_by_metric(torch.tensor([[NAN, math.inf, 1.0]])).tolist() == [[False, True, False]]


# CANON, by hand: lower half r = 1, 0 (mean 0.5), higher half r = 1, 1 (mean 1)
REWARDS = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
HIGHER = torch.tensor([[False, False, True, True]])


def test_inter_group():
    close(inter_group_advantage(REWARDS, HIGHER), [[0.0, -1.0, 0.5, 0.5]])


def test_inter_group_alpha_on_the_higher_half():
    # H: 0.5 * r - 0.5 = 0       L: r - 0.5 * 1 = 0.5, -0.5
    close(inter_group_advantage(REWARDS, HIGHER, alpha=0.5, alpha_group="higher"), [[0.5, -0.5, 0.0, 0.0]])


def test_inter_group_alpha_on_the_lower_half():
    # H: r - 0.5 * 0.5 = 0.75    L: 0.5 * r - 1 = -0.5, -1
    close(inter_group_advantage(REWARDS, HIGHER, alpha=0.5, alpha_group="lower"), [[-0.5, -1.0, 0.75, 0.75]])


def test_intra_group():
    close(intra_group_advantage(REWARDS, HIGHER), [[0.5, -0.5, 0.0, 0.0]])


def test_canon_mixes_them():
    metric = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    close(canon_advantage(REWARDS, metric, mu=0.25), [[0.375, -0.625, 0.125, 0.125]])


def test_canon_with_unscored_responses():
    # valid: metric 1, 3, 4 with rewards 1, 0, 1. Lower half (3 // 2 = 1): the first. Higher: 0 and 1, mean 0.5.
    rewards, metric = torch.tensor([[1.0, NAN, 0.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    close(canon_advantage(rewards, metric, mu=1.0), [[0.5, 0.0, -1.0, 0.0]])
    close(canon_advantage(rewards, metric, mu=0.0), [[0.0, 0.0, -0.5, 0.5]])


def test_groups_with_fewer_than_two_valid_responses_get_advantage_0():
    for rewards in (torch.tensor([[1.0, NAN, NAN], [NAN, NAN, NAN]]), torch.tensor([[0.0], [1.0], [0.3]])):
        for name, estimator in ESTIMATORS.items():
            assert (estimator(rewards) == 0).all(), name


def test_statistics():
    # group 1: m(H) = 1, m(L) = 0.5; group 2: 0.5 and 0.5, a tie
    rewards = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    metric = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])
    statistics = {name: value.item() for name, value in canon_statistics(rewards, metric).items()}
    assert statistics == {"reward_gap": 0.25, "higher_wins": 0.75, "metric_higher": 19.25, "metric_lower": 8.25}


# Baselines, by hand


def test_grpo():
    # mean 0.25, deviations 0.75, -0.25 x 3, variance (0.5625 + 3 * 0.0625) / 3 = 0.25, std 0.5
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    close(grpo_advantage(rewards, eps=0.0), [[1.5, -0.5, -0.5, -0.5]])
    close(grpo_advantage(rewards, eps=0.5), [[0.75, -0.25, -0.25, -0.25]])


def test_rloo():
    # 1 - mean(0, 0, 0) = 1, and 0 - mean(1, 0, 0) = -1/3
    close(rloo_advantage(torch.tensor([[1.0, 0.0, 0.0, 0.0]])), [[1.0, -1 / 3, -1 / 3, -1 / 3]])
    # the unscored response leaves the divisor: 1 - mean(0) and 0 - mean(1)
    close(rloo_advantage(torch.tensor([[1.0, 0.0, NAN]])), [[1.0, -1.0, 0.0]])


def test_opo():
    # baseline (3 * 1 + 1 * 0) / 4 = 0.75
    close(opo_advantage(torch.tensor([[1.0, 0.0]]), torch.tensor([[3, 1]])), [[0.25, -0.75]])
    assert opo_advantage(torch.tensor([[1.0, 0.0]]), torch.tensor([[0, 0]])).tolist() == [[0.0, 0.0]]


def test_reinforce_pp_baseline():
    # centred 0.5, -0.5; three tokens of +0.5, one of -0.5: mean 0.25, variance (3 / 16 + 9 / 16) / 3 = 0.25
    advantages = reinforce_pp_baseline_advantage(torch.tensor([[1.0, 0.0]]), torch.tensor([[3, 1]]))
    close(advantages, [[0.5, -1.5]])


# A-GRAE and its family, by hand


# p = 1/4 and 3/4, q = 1/2, and A = r - p.
ONE_AND_THREE_OF_FOUR = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)


def test_a_grae():
    # Both groups: A' = A/4 * (1 / sqrt(1/4) + 1 / sqrt(3/4)) = 0.7886751 A, and q = 1/2 halves the positive ones.
    factor = 0.25 * (2 + 2 / 3**0.5)
    advantages = a_grae_advantage(ONE_AND_THREE_OF_FOUR, scale=False, eps=0.0)
    close(advantages[0], [0.75 * factor / 2] + [-0.25 * factor] * 3)
    close(advantages[1], [0.25 * factor / 2] * 3 + [-0.75 * factor])
    # nothing is damped from q = 1/2 on
    undamped = a_grae_advantage(ONE_AND_THREE_OF_FOUR, scale=False, eps=0.0, attenuation=0.5)
    close(undamped[0], [0.75 * factor] + [-0.25 * factor] * 3)
    # on GRPO: the deviation of both is 1/2
    close(a_grae_advantage(ONE_AND_THREE_OF_FOUR, eps=0.0), 2 * advantages)


def test_released_a_grae():
    # Group 1: sqrt(p) = 1/2, so easy and hard are A; A' = A. The positive one is halved.
    # Group 2: sqrt(p) = 0.8660254; easy = 3.7320508 A, hard = 0.5773503 A, their mean 2.1547005 A.
    advantages = a_grae_advantage(ONE_AND_THREE_OF_FOUR, scale=False, eps=0.0, form="released")
    factor = 0.5 * 0.5 * (1 / (1 - 0.75**0.5) + 1 / 0.75**0.5)
    close(advantages[0], [0.375, -0.25, -0.25, -0.25])
    close(advantages[1], [factor * 0.25 / 2] * 3 + [-factor * 0.75])
    undamped = a_grae_advantage(ONE_AND_THREE_OF_FOUR, scale=False, eps=0.0, attenuation=0.5, form="released")
    close(undamped[0], [0.75, -0.25, -0.25, -0.25])


@pytest.mark.parametrize(
    ("form", "easy"), [("paper", {15: 2.0, 1: 0.5163978}), ("released", {15: 15.7459667, 1: 2 / 3})]
)
@pytest.mark.parametrize("right", [15, 1])
def test_a_grae_weights_a_nearly_solved_group_by_form(form, easy, right):
    # 15 of 16: 1 / (2 sqrt(1/16)) = 2 in the paper, 1 / (2 (1 - sqrt(15/16))) = 15.75 in the code. The other 31 groups
    # are all wrong.
    rewards = torch.zeros(32, 16, dtype=torch.float64)
    rewards[0, :right] = 1
    q, p = right / 512, right / 16
    wrong = a_grae_advantage(rewards, scale=False, eps=0.0, form=form)[0, -1]
    close(wrong, -p * ((1 - q) * easy[right] + q / (2 * p**0.5)))


def test_eps_is_added_to_every_divisor_of_a_grae():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)  # p = q = 1/4, deviation 1/2
    for form, easy in (("paper", 0.75**0.5), ("released", 0.5)):
        wrong = -0.25 / (0.5 + 0.1) * (0.75 / (easy + 0.1) + 0.25 / (0.5 + 0.1)) / 2
        close(a_grae_advantage(rewards, eps=0.1, form=form)[0, -1], wrong)


@given(
    st.integers(2, 12).flatmap(
        lambda size: st.lists(st.integers(0, size), min_size=1, max_size=5).map(
            lambda right: (torch.arange(size) < torch.tensor(right).unsqueeze(1)).double()
        )
    )
)
def test_a_grae_magnitudes_add_up_as_in_the_paper(rewards):
    """Per group, the paper has G sqrt(p) for the easy branch and G sqrt(1 - p) for the hard one with a deviation of
    divisor G; the sample deviation replaces G by sqrt(G (G - 1))."""
    size, p = rewards.shape[1], rewards.mean(dim=1)
    q = p.mean()
    sums = a_grae_advantage(rewards, attenuation=1e-9, eps=1e-12).abs().sum(dim=1)
    want = (size * (size - 1)) ** 0.5 * ((1 - q) * p.sqrt() + q * (1 - p).sqrt())
    close(sums, torch.where((p > 0) & (p < 1), want, 0.0))


@pytest.mark.parametrize("form", ["paper", "released"])
def test_a_grae_is_0_in_groups_that_are_all_right_or_all_wrong(form):
    rewards = torch.tensor([[1.0] * 4, [0.0] * 4, [1.0, 0.0, 0.0, 0.0]])
    for scale in (True, False):
        advantages = a_grae_advantage(rewards, scale=scale, eps=0.0, form=form)
        assert advantages[:2].tolist() == [[0.0] * 4] * 2
        # p = 1/4 and q = 5/12; the positive one is damped by q
        deviation = 0.5 if scale else 1.0
        factor = 5 / 12 + 7 / 12 * (1 / (2 * 0.75**0.5) if form == "paper" else 1.0)
        close(advantages[2], [0.75 / deviation * factor * 5 / 12] + [-0.25 / deviation * factor] * 3)


def test_a_grae_excludes_unscored_groups_from_the_batch_mean():
    rewards = torch.tensor([[1.0, 0.0, NAN, 0.0], [NAN] * 4])
    close(a_grae_advantage(rewards)[:1, [0, 1, 3]], a_grae_advantage(rewards[:1, [0, 1, 3]]))
    assert a_grae_advantage(rewards)[1].tolist() == [0.0] * 4


@pytest.mark.parametrize("form", ["paper", "released"])
@given(rewards=reward_tables(scored=True))
def test_a_grae_preserves_signs(form, rewards):
    rewards = (rewards + 2) / 4
    assert torch.equal(a_grae_advantage(rewards, form=form).sign(), grpo_advantage(rewards).sign())


def test_reinforce_family():
    rewards = torch.tensor([[1.0, 0.0, NAN]])
    close(psr_advantage(rewards), [[1.0, 0.0, 0.0]])
    close(nsr_advantage(rewards), [[0.0, -1.0, 0.0]])
    close(w_reinforce_advantage(rewards), [[0.1, -1.0, 0.0]])
    close(w_reinforce_advantage(rewards, positive_weight=0.0), nsr_advantage(rewards))
    close(w_reinforce_advantage(rewards, positive_weight=1.0), psr_advantage(rewards) + nsr_advantage(rewards))


# A*-PO's optimal value


def test_optimal_value():
    # 0.5 * log((e^2 + 1) / 2) of rewards 1 and 0
    rewards = torch.tensor([[1.0, 0.0], [0.0, 0.0], [NAN, 1.0], [NAN, NAN]], dtype=torch.float64)
    close(optimal_value(rewards, beta=0.5)[:3], [0.5 * math.log((math.e**2 + 1) / 2), 0.0, 1.0], 1e-12)
    assert optimal_value(rewards, beta=0.5)[3].isnan() and optimal_value(rewards, beta=0)[3].isnan()
    close(optimal_value(rewards, beta=0)[:3], [0.5, 0.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [1e30, -1e30, 1e-30])
@pytest.mark.parametrize("beta", [1e-30, 1e-3, 0.5, 1e30])
def test_optimal_value_never_overflows(reward, beta, dtype):
    rewards = torch.tensor([[reward, reward, 0.0, 0.0]], dtype=dtype)
    value = optimal_value(rewards, beta=beta)
    assert value.isfinite().all()
    assert rewards.mean() - 1e-6 * abs(reward) <= value <= rewards.amax() + 1e-6 * abs(reward)


@given(reward_tables(scored=True), st.floats(0.01, 5), st.sampled_from([-4.0, 0.5, 8.0]))
def test_optimal_value_is_between_mean_and_best_and_shifts_with_the_rewards(rewards, beta, shift):
    value = optimal_value(rewards, beta=beta)
    assert (value >= rewards.mean(dim=1) - 1e-9).all() and (value <= rewards.amax(dim=1) + 1e-9).all()
    close(optimal_value(rewards + shift, beta=beta), value + shift, 1e-9)
    assert (optimal_value(rewards, beta=2 * beta) <= value + 1e-9).all()


# Reductions


@given(reward_tables(even=True), st.data())
def test_mu_one_half_is_dr_grpo_for_even_groups(rewards, data):
    rewards = rewards.nan_to_num(0.5)
    metric = metrics_for(data, rewards)
    close(canon_advantage(rewards, metric, mu=0.5), dr_grpo_advantage(rewards), 1e-12)


@given(reward_tables(even=True, scored=True), st.data())
def test_inter_group_sums_to_zero_for_equal_halves(rewards, data):
    metric = metrics_for(data, rewards)
    close(canon_advantage(rewards, metric, mu=1.0).sum(dim=1), torch.zeros(len(rewards)), 1e-12)


@given(reward_tables(scored=True), st.data())
def test_intra_group_sums_to_zero_in_each_half(rewards, data):
    metric = metrics_for(data, rewards)
    advantages, higher = canon_advantage(rewards, metric, mu=0.0), split_by_metric(metric)
    close((advantages * higher).sum(dim=1), torch.zeros(len(rewards)), 1e-12)
    close((advantages * ~higher).sum(dim=1), torch.zeros(len(rewards)), 1e-12)


@given(reward_tables(scored=True), st.data(), st.floats(0.1, 2))
def test_intra_group_does_not_depend_on_alpha(rewards, data, alpha):
    metric = metrics_for(data, rewards)
    assert torch.equal(canon_advantage(rewards, metric, mu=0.0, alpha=alpha), canon_advantage(rewards, metric, mu=0.0))


@given(reward_tables(scored=True), st.data(), st.floats(0.1, 2))
def test_alpha_groups_mirror_each_other(rewards, data, alpha):
    """Swapping both the halves and `alpha_group` changes nothing."""
    higher = split_by_metric(metrics_for(data, rewards))
    close(
        inter_group_advantage(rewards, higher, alpha=alpha, alpha_group="higher"),
        inter_group_advantage(rewards, ~higher, alpha=alpha, alpha_group="lower"),
        1e-12,
    )


@given(reward_tables())
def test_rloo_is_a_multiple_of_dr_grpo(rewards):
    count = (~rewards.isnan()).sum(dim=1, keepdim=True)
    factor = torch.where(count > 1, count / (count - 1).clamp(min=1), 0.0)
    close(rloo_advantage(rewards), factor * dr_grpo_advantage(rewards))


@given(reward_tables())
def test_opo_with_equal_lengths_is_dr_grpo(rewards):
    close(opo_advantage(rewards, torch.full_like(rewards, 7)), dr_grpo_advantage(rewards))


# Shared properties


@pytest.mark.parametrize("name", ALL)
@given(rewards=reward_tables(), data=st.data())
def test_permuting_groups_permutes_advantages(name, rewards, data):
    rewards = admissible(name, rewards)
    order = torch.tensor(data.draw(st.permutations(range(len(rewards)))))
    close(ALL[name](rewards[order]), ALL[name](rewards)[order])


@pytest.mark.parametrize("name", ESTIMATORS)
@given(rewards=reward_tables(), shift=st.sampled_from([-4.0, 0.5, 8.0]))
def test_shifting_rewards_changes_nothing(name, rewards, shift):
    # with quarters, the shift keeps equal rewards equal and different ones different
    rewards = (rewards * 4).round() / 4
    close(ESTIMATORS[name](rewards + shift), ESTIMATORS[name](rewards))


@pytest.mark.parametrize("name", GROUP_LOCAL)
@given(rewards=reward_tables(), data=st.data())
def test_groups_are_independent(name, rewards, data):
    group = data.draw(st.integers(0, len(rewards) - 1))
    close(ESTIMATORS[name](rewards)[group : group + 1], ESTIMATORS[name](rewards[group : group + 1]))


@pytest.mark.parametrize("mu", [0.0, 0.4, 1.0])
@given(rewards=reward_tables(scored=True), data=st.data())
def test_invalid_responses_do_not_affect_others(mu, rewards, data):
    metric = metrics_for(data, rewards)
    position = data.draw(st.integers(0, rewards.shape[1]))
    poison = torch.full((len(rewards), 1), 1e6, dtype=rewards.dtype)

    def insert(table, column):
        return torch.cat([table[:, :position], column, table[:, position:]], dim=1)

    valid = insert(torch.ones_like(rewards, dtype=torch.bool), torch.zeros_like(poison, dtype=torch.bool))
    for reward, marked in [(poison, valid), (poison * NAN, None)]:
        widened = canon_advantage(insert(rewards, reward), insert(metric, poison), mu=mu, valid=marked)
        assert (widened[:, position] == 0).all()
        rest = torch.cat([widened[:, :position], widened[:, position + 1 :]], dim=1)
        close(rest, canon_advantage(rewards, metric, mu=mu), 1e-12)


@pytest.mark.parametrize("name", ALL)
@given(rewards=reward_tables(scored=True))
def test_unscored_responses_do_not_affect_others(name, rewards):
    rewards = admissible(name, rewards)
    widened = ALL[name](torch.cat([rewards, torch.full_like(rewards[:, :1], NAN)], dim=1))
    assert (widened[:, -1] == 0).all()
    close(widened[:, :-1], ALL[name](rewards), 1e-12)


def test_intra_group_is_exactly_0_in_a_half_with_equal_rewards():
    """The mean of seven rewards of 0.1 is not quite 0.1; the other half has different rewards."""
    rewards = torch.tensor([[0.1] * 7 + [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]])
    within = intra_group_advantage(rewards, split_by_metric(torch.arange(14.0).unsqueeze(0)))
    assert (within[:, :7] == 0).all()
    close(within[:, 7:], rewards[:, 7:] - 3 / 7)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("size", [2, 4, 7, 11, 16])
def test_equal_rewards_give_exactly_0(name, size):
    """Also for rewards without a binary fraction, whose computed mean is not quite the reward."""
    for reward in (0.1, 0.75, 1 / 3):
        assert ESTIMATORS[name](torch.full((3, size), reward)).abs().max() == 0


@pytest.mark.parametrize("name", ALL)
@given(rewards=reward_tables())
def test_bf16_is_computed_in_float32(name, rewards):
    low = admissible(name, rewards).bfloat16()
    advantages = ALL[name](low)
    assert advantages.dtype == torch.bfloat16
    assert torch.equal(advantages, ALL[name](low.float()).bfloat16())


@pytest.mark.parametrize("name", ALL)
@given(rewards=reward_tables())
def test_inputs_are_not_modified(name, rewards):
    rewards = admissible(name, rewards)
    before = rewards.clone()
    assert ALL[name](rewards).shape == rewards.shape
    assert torch.equal(rewards.nan_to_num(9.0), before.nan_to_num(9.0))


@given(rewards=reward_tables(), data=st.data())
def test_canon_does_not_modify_the_metric(rewards, data):
    metric = metrics_for(data, rewards)
    before = metric.clone()
    canon_advantage(rewards, metric, mu=0.5, valid=rewards > 0)
    assert torch.equal(metric, before)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": 1.5}, r"mu=1.5 must lie in \[0, 1\]"),
        ({"mu": NAN}, "mu=nan must lie"),
        ({"alpha": 0.0}, r"alpha=0.0 must lie in \(0, 1e6\]"),
        ({"alpha": NAN}, "alpha=nan must lie in"),
        ({"alpha_group": "upper"}, "alpha_group='upper' must be 'higher' or 'lower'"),
    ],
)
def test_canon_rejects_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        canon_advantage(torch.zeros(1, 2), torch.zeros(1, 2), **options)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (a_grae_advantage, {"attenuation": 0.0}, "attenuation=0.0 must lie in"),
        (a_grae_advantage, {"form": "code"}, "form='code' must be 'paper' or 'released'"),
        (w_reinforce_advantage, {"positive_weight": -0.1}, "positive_weight=-0.1 must lie in"),
        (optimal_value, {"beta": -1.0}, r"beta=-1.0 must lie in \[0, inf\)"),
        (optimal_value, {"beta": NAN}, "beta=nan must lie in"),
    ],
)
def test_other_functions_reject_bad_options(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(1, 2), **options)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"rewards \(1, 2\) and metric \(2, 1\)"):
        canon_advantage(torch.zeros(1, 2), torch.zeros(2, 1))

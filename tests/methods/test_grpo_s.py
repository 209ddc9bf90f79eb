"""GRPO-S as a function: a case by hand, its reductions, and what each reading of the paper makes of it."""

import math

import pytest
import torch
from golden_cases import assert_golden, tensor

from canon_trl import Rollout
from canon_trl.advantages import ESTIMATORS, STAGE, grpo_advantage, grpo_s_advantage
from canon_trl.method import find

READINGS = ["with_zeros", "together", "apart"]
REWARDS = tensor([[1.0, 1.0, 0.0, 0.0]])
ENTROPY = tensor([[0.5, 1.5, 0.2, 0.6]])


def random_groups(shape=(6, 8)):
    random = torch.Generator().manual_seed(0)
    rewards = torch.randint(0, 2, shape, generator=random).double()
    return rewards, torch.rand(shape, generator=random, dtype=torch.float64) + 0.01


def in_deviations(value, values):
    mean = sum(values) / len(values)
    return (value - mean) / math.sqrt(sum((each - mean) ** 2 for each in values) / (len(values) - 1))


def test_a_case_by_hand():
    # Right: 0.5 and 1.5 of a mean of 1. Wrong: 1/H is 5 and 5/3 of a mean of 10/3, so shares of 1.5 and 0.5.
    right, wrong = [1 + 0.1 * 0.5, 1 + 0.1 * 1.5], [-1 - 0.1 * 1.5, -1 - 0.1 * 0.5]
    among_zeros = [in_deviations(each, [*right, 0, 0]) for each in right]
    among_zeros += [in_deviations(each, [0, 0, *wrong]) for each in wrong]
    want = {
        "with_zeros": among_zeros,
        "together": [in_deviations(each, right + wrong) for each in right + wrong],
        "apart": [-math.sqrt(0.5), math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(0.5)],
    }
    for reading in READINGS:
        assert_golden(grpo_s_advantage(REWARDS, ENTROPY, standardise=reading), [want[reading]])
    assert_golden(grpo_s_advantage(REWARDS, ENTROPY), [among_zeros])


@pytest.mark.parametrize("options", [{}, {"entropy_weight": 3.0}, {"reward_weight": 0.5}], ids=str)
@pytest.mark.parametrize("reading", ["with_zeros", "together"])
def test_equal_entropies_make_it_grpo(reading, options):
    rewards, entropy = random_groups()
    equal = torch.full_like(entropy, 0.7)
    grpo = grpo_advantage(rewards, eps=1e-15)
    torch.testing.assert_close(grpo_s_advantage(rewards, equal, standardise=reading, **options), grpo)


@pytest.mark.parametrize("reading", ["with_zeros", "together"])
def test_without_the_entropy_part_it_is_grpo(reading):
    rewards, entropy = random_groups()
    advantages = grpo_s_advantage(rewards, entropy, entropy_weight=0.0, standardise=reading)
    torch.testing.assert_close(advantages, grpo_advantage(rewards, eps=1e-15))


def test_apart_neither_weight_changes_the_result():
    rewards, entropy = random_groups()
    advantages = grpo_s_advantage(rewards, entropy, standardise="apart")
    assert advantages.abs().max() > 0.5
    for weights in ({"reward_weight": 0.3}, {"entropy_weight": 0.9}, {"reward_weight": 2.0, "entropy_weight": 1e-3}):
        other = grpo_s_advantage(rewards, entropy, standardise="apart", **weights)
        torch.testing.assert_close(other, advantages, rtol=1e-9, atol=1e-9)
    for chosen in (rewards == 1, rewards == 0):
        assert_golden(advantages.masked_fill(~chosen, 0.0).sum(dim=1), [0.0] * len(rewards))
    alone = tensor([[1.0, 0.0, 0.0]])
    assert grpo_s_advantage(alone, tensor([[0.5, 0.5, 0.5]]), standardise="apart").tolist() == [[0.0] * 3]


@pytest.mark.parametrize("reading", ["with_zeros", "together"])
def test_otherwise_the_weights_count(reading):
    plain = grpo_s_advantage(REWARDS, ENTROPY, standardise=reading)
    stronger = grpo_s_advantage(REWARDS, ENTROPY, standardise=reading, entropy_weight=0.2)
    spread, wider = plain[0, 1] - plain[0, 0], stronger[0, 1] - stronger[0, 0]
    assert wider > spread > 0


@pytest.mark.parametrize("reading", READINGS)
def test_uncertain_right_responses_gain_and_certain_wrong_ones_lose(reading):
    advantages = grpo_s_advantage(REWARDS, ENTROPY, standardise=reading)[0].tolist()
    assert advantages[0] < advantages[1] and advantages[2] < advantages[3]


def test_a_right_response_of_low_entropy_can_lose_in_an_easy_group():
    rewards, entropy = tensor([[1.0] * 15 + [0.0]]), tensor([[0.01] + [1.0] * 15])
    assert grpo_s_advantage(rewards, entropy)[0, 0] < 0


@pytest.mark.parametrize("reading", READINGS)
def test_groups_without_spread_are_trained_on_only_if_that_is_chosen(reading):
    rewards, entropy = tensor([[1.0] * 3, [0.0] * 3]), tensor([[0.1, 0.2, 0.3]]).repeat(2, 1)
    assert (grpo_s_advantage(rewards, entropy, standardise=reading) == 0).all()
    advantages = grpo_s_advantage(rewards, entropy, standardise=reading, train_groups_without_spread=True)
    assert_golden(advantages[:1], [[-1.0, 0.0, 1.0]])
    penalties = [-10.0, -5.0, -10.0 / 3]  # 1 / H; scale and shift do not count
    assert_golden(advantages[1:], [[in_deviations(each, penalties) for each in penalties]])


def test_entropies_of_0_are_lifted_to_the_floor():
    advantages = grpo_s_advantage(REWARDS, torch.zeros_like(ENTROPY))
    torch.testing.assert_close(advantages, grpo_advantage(REWARDS, eps=1e-15))
    certain = grpo_s_advantage(REWARDS, tensor([[0.5, 1.5, 0.0, 0.6]]))
    assert certain.isfinite().all()
    lifted = grpo_s_advantage(REWARDS, tensor([[0.5, 1.5, 0.0, 0.6]]), floor=0.2)
    assert torch.equal(lifted, grpo_s_advantage(REWARDS, ENTROPY))


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("missing", ["reward", "entropy"])
def test_an_invalid_response_changes_nothing_for_the_others(reading, missing):
    rewards, entropy = tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]), tensor([[0.5, 1.5, 0.2, 9.0, 0.6]])
    (rewards if missing == "reward" else entropy)[0, 3] = torch.nan
    advantages = grpo_s_advantage(rewards, entropy, standardise=reading)
    assert advantages[0, 3] == 0
    without = grpo_s_advantage(REWARDS, ENTROPY, standardise=reading)
    torch.testing.assert_close(advantages[:, [0, 1, 2, 4]], without)


def test_a_group_of_one_bfloat16_and_integers():
    assert grpo_s_advantage(tensor([[1.0]]), tensor([[0.5]])).tolist() == [[0.0]]
    assert grpo_s_advantage(REWARDS.bfloat16(), ENTROPY.float()).dtype == torch.bfloat16
    close = {"rtol": 1e-5, "atol": 1e-5}
    whole = grpo_s_advantage(REWARDS.int(), ENTROPY)
    torch.testing.assert_close(whole.double(), grpo_s_advantage(REWARDS, ENTROPY), **close)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entropy_weight": -0.1}, r"entropy_weight=-0.1 must lie in \[0, 1e6\]"),
        ({"reward_weight": 0.0}, r"reward_weight=0.0 must lie in \(0, 1e6\]"),
        ({"floor": 0.0}, r"floor=0.0 must lie in \(0, 1e6\]"),
        ({"standardise": "zeros"}, "standardise='zeros' must be 'with_zeros', 'together' or 'apart'"),
    ],
    ids=str,
)
def test_options_that_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        grpo_s_advantage(REWARDS, ENTROPY, **options)
    with pytest.raises(ValueError, match=message):
        find(STAGE, {"grpo_s": options})


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"rewards \(1, 4\) and entropy \(1, 3\) must have the same shape"):
        grpo_s_advantage(REWARDS, ENTROPY[:, :3])


def test_as_an_estimator_it_reads_the_mean_entropy_of_each_response():
    assert ESTIMATORS["grpo_s"].required_metrics == ("entropy",) and ESTIMATORS["grpo_s"].reward_range == "{0, 1}"
    rollout = Rollout.example(rewards=REWARDS, metrics={"entropy": ENTROPY})
    options = {"reward_weight": 0.9, "entropy_weight": 0.2, "standardise": "together", "floor": 0.3}
    options["train_groups_without_spread"] = True
    assert torch.equal(ESTIMATORS["grpo_s"](rollout), grpo_s_advantage(REWARDS, ENTROPY))
    estimator = find(STAGE, {"grpo_s": options})
    assert estimator.all_options == options
    assert torch.equal(estimator(rollout), grpo_s_advantage(REWARDS, ENTROPY, **options))

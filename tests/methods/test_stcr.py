"""STCR as a function: numbers of the released code, and where it departs from it."""

import math

import pytest
import torch
from golden_cases import assert_golden, cases, tensor

from canon_trl.advantages import ESTIMATORS, grpo_advantage, stcr_advantage

GOLDEN = cases("methods_stcr_dads")
REWARDS = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
LENGTHS = torch.tensor([[100, 300, 200, 201, 1200]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_numbers_of_the_released_code(case, dtype):
    rewards, lengths = tensor(case["inputs"]["rewards"], dtype), torch.tensor(case["inputs"]["lengths"])
    assert_golden(stcr_advantage(rewards, lengths), case["expected"]["advantages_stcr"])
    assert_golden(stcr_advantage(rewards, lengths, base=1.0), case["expected"]["advantages"])


def test_a_case_by_hand():
    # The right ones have 200 tokens on average; the wrong ones 0, 1 and 1,000 more.
    # Mean 2/5 and variance (2 * 0.36 + 3 * 0.16) / 4 = 0.3.
    weights = [1.0, 1.0, 1.0, 2 - 1 / 1.00001, 2 - 1.00001**-1000]
    want = [
        weight * (reward - 0.4) / math.sqrt(0.3) for weight, reward in zip(weights, REWARDS[0].tolist(), strict=True)
    ]
    assert_golden(stcr_advantage(REWARDS, LENGTHS), [want])
    assert weights[-1] == pytest.approx(1.00995, abs=5e-6)


@pytest.mark.parametrize("rewards", [[[1.0, 1.0, 0.0, 0.0]], [[0.9, 0.5, 0.2, 0.0]]], ids=str)
def test_it_is_grpo_without_long_wrong_or_without_right_answers(rewards):
    lengths = torch.tensor([[300, 500, 20, 400]])
    rewards = tensor(rewards)
    assert torch.equal(stcr_advantage(rewards, lengths), grpo_advantage(rewards, eps=1e-9))


def test_only_negative_advantages_are_weighted():
    """The third response is wrong, long and above the mean: the code would reward its length."""
    rewards, lengths = tensor([[1.0, 0.0, 0.9, 0.0]]), torch.tensor([[10, 10, 50_000, 50_000]])
    weights = stcr_advantage(rewards, lengths) / grpo_advantage(rewards, eps=1e-9)
    assert_golden(weights, [[1.0, 1.0, 1.0, 2 - 1.00001**-49_990]])


def test_the_weight_grows_with_the_length_and_stays_below_2():
    advantages = stcr_advantage(
        tensor([[1.0, 0.0]]).repeat(4, 1), torch.tensor([[1, 2], [1, 99], [1, 9**6], [1, 9**9]])
    )
    weights = advantages[:, 1] / grpo_advantage(tensor([[1.0, 0.0]]), eps=1e-9)[0, 1]
    assert (weights[1:] > weights[:-1]).all() and (weights <= 2).all()


def test_signed_and_rounded_rewards_of_1_count_as_right():
    signed = stcr_advantage(2 * REWARDS - 1, LENGTHS)
    torch.testing.assert_close(signed, stcr_advantage(REWARDS, LENGTHS), rtol=1e-8, atol=0.0)
    weighted_sum = 0.7 + 0.2 + 0.1
    assert weighted_sum < 1
    lengths = torch.tensor([[1, 10_000]])
    advantages = stcr_advantage(tensor([[weighted_sum, 0.0]]), lengths)
    torch.testing.assert_close(advantages, stcr_advantage(tensor([[1.0, 0.0]]), lengths))


@pytest.mark.parametrize("rewards", [[1.0, 1.0], [0.0, 0.0], [0.0, torch.nan]], ids=str)
def test_groups_with_advantage_0(rewards):
    assert stcr_advantage(torch.tensor([rewards]), torch.tensor([[1, 9]])).tolist() == [[0.0, 0.0]]


def test_an_unscored_response_changes_nothing_for_the_others():
    with_one = stcr_advantage(tensor([[1.0, torch.nan, 0.0]]), torch.tensor([[5, 9000, 900]]))
    without = stcr_advantage(tensor([[1.0, 0.0]]), torch.tensor([[5, 900]]))
    assert with_one[0, 1] == 0 and torch.equal(with_one[:, [0, 2]], without)


def test_bfloat16_and_integers():
    assert stcr_advantage(torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16), LENGTHS[:, :2]).dtype == torch.bfloat16
    assert stcr_advantage(torch.tensor([[1, 0]]), LENGTHS[:, :2]).dtype == torch.float32


@pytest.mark.parametrize("base", [0.999, math.nan, "2", True])
def test_a_base_that_is_rejected(base):
    with pytest.raises(ValueError, match=r"base=.* must"):
        stcr_advantage(REWARDS, LENGTHS, base=base)


def test_what_it_reads():
    assert ESTIMATORS["stcr"].reads == ("rewards", "lengths") and ESTIMATORS["stcr"].reward_range is None

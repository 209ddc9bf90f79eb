"""PSHW as a function: numbers from the paper's formula, its reductions, and the rewards that it accepts."""

import math

import pytest
import torch
from golden_cases import assert_golden, cases, tensor

from canon_trl import Rollout
from canon_trl.advantages import ESTIMATORS, STAGE, dr_grpo_advantage, pshw_advantage
from canon_trl.method import find

GOLDEN = [case for case in cases("wave1") if case["method"] == "pshw"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_numbers_from_the_formula(case, dtype):
    inputs = case["inputs"]
    advantages = pshw_advantage(tensor(inputs["rewards"], dtype), alpha=inputs["alpha"], low=inputs["low"])
    assert_golden(advantages, case["expected"])


@pytest.mark.parametrize(("right", "size"), [(1, 4), (2, 4), (3, 4), (1, 8)])
def test_a_case_by_hand_with_the_constants_of_the_paper(right, size):
    mean = (2 * right - size) / size
    weight = -0.256 * mean + 1.256
    rewards = torch.tensor([[1.0] * right + [-1.0] * (size - right)])
    want = [weight * (1 - mean)] * right + [weight * (-1 - mean)] * (size - right)
    torch.testing.assert_close(pshw_advantage(rewards), torch.tensor([want]))


def test_the_factor_is_1_where_nearly_all_are_right():
    """At mu = 1 no advantage is left to weigh; 1 - 1e-6 is as near as a mean of a million responses comes."""
    rewards = torch.ones(1, 2_000_000, dtype=torch.float64)
    rewards[0, 0] = -1
    factor = pshw_advantage(rewards) / dr_grpo_advantage(rewards)
    torch.testing.assert_close(factor, torch.ones_like(rewards), rtol=1e-6, atol=0.0)


def test_alpha_0_is_dr_grpo():
    rewards = torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
    assert torch.equal(pshw_advantage(rewards, alpha=0.0), dr_grpo_advantage(rewards))
    assert torch.equal(pshw_advantage((rewards + 1) / 2, alpha=0.0, low=0), dr_grpo_advantage(rewards))


def test_rewards_0_and_1_give_what_rewards_of_both_signs_give():
    rewards = torch.randint(0, 2, (6, 5), generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(pshw_advantage(rewards, low=0), pshw_advantage(2 * rewards - 1))


@pytest.mark.parametrize("rewards", [[1.0, 1.0], [-1.0, -1.0], [1.0, torch.nan]], ids=str)
def test_groups_with_advantage_0(rewards):
    assert pshw_advantage(torch.tensor([rewards])).tolist() == [[0.0, 0.0]]


def test_an_unscored_response_changes_nothing_for_the_others():
    with_one = pshw_advantage(tensor([[1.0, torch.nan, -1.0, -1.0]]))
    without = pshw_advantage(tensor([[1.0, -1.0, -1.0]]))
    assert with_one[0, 1] == 0 and torch.equal(with_one[:, [0, 2, 3]], without)


def test_bfloat16_and_integers():
    assert pshw_advantage(torch.tensor([[1.0, -1.0]], dtype=torch.bfloat16)).dtype == torch.bfloat16
    torch.testing.assert_close(pshw_advantage(torch.tensor([[1, -1]])), torch.tensor([[1.256, -1.256]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.5}, r"alpha=0.5 must lie in \[-1e6, 0.5\)"),
        ({"alpha": math.nan}, "alpha=nan must lie in"),
        ({"low": 0.5}, "low=0.5 must be -1 or 0"),
        ({"low": 1}, "low=1 must be -1 or 0"),
    ],
    ids=str,
)
def test_options_that_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        pshw_advantage(torch.tensor([[1.0, -1.0]]), **options)
    with pytest.raises(ValueError, match=message):
        find(STAGE, {"pshw": options})


def test_low_decides_which_rewards_the_trainer_accepts():
    assert ESTIMATORS["pshw"].reward_range == "{-1, 1}"
    assert find(STAGE, "pshw").reward_range == find(STAGE, {"pshw": {"low": -1.0}}).reward_range == "{-1, 1}"
    estimator = find(STAGE, {"pshw": {"low": 0}})
    assert estimator.reward_range == "{0, 1}"
    rewards = torch.tensor([[1.0, 0.0, 0.0]])
    assert torch.equal(estimator(Rollout.example(rewards=rewards)), pshw_advantage(rewards, low=0))
    assert find(STAGE, {"mix": {"psr": 0.5, "pshw": {"weight": 0.5, "low": 0}}}).reward_range == "{0, 1}"
    with pytest.raises(ValueError, match="no rewards suit all"):
        find(STAGE, {"mix": {"psr": 0.5, "pshw": 0.5}})

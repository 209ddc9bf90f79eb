"""MaxRL: numbers of two published implementations, and the gradient that it estimates."""

from itertools import product

import pytest
import torch
from golden_cases import assert_golden, cases, tensor

from canon_trl.advantages import dr_grpo_advantage, maxrl_advantage

FORMULA = [case for case in cases("wave1") if case["method"] == "maxrl"]
PRIME_RL = [case for case in cases("wave1_code", flavour="prime_rl") if case["method"] == "maxrl"]
SKYRL = [case for case in cases("wave1_code", flavour="skyrl") if case["method"] == "maxrl"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", [*FORMULA, *PRIME_RL], ids=lambda case: case["name"])
def test_numbers_match_the_formula_and_prime_rl(case, dtype):
    expected = case["expected"]
    advantages = maxrl_advantage(tensor(case["inputs"]["rewards"], dtype))
    assert_golden(advantages, expected["advantages"] if isinstance(expected, dict) else expected)


@pytest.mark.parametrize("case", SKYRL, ids=lambda case: case["name"])
def test_skyrl_differs_by_its_epsilon_in_the_divisor(case):
    rewards = tensor(case["inputs"]["rewards"])
    mean = rewards.mean(dim=1, keepdim=True)
    if "group_of_one" in case["name"]:
        assert (maxrl_advantage(rewards) == 0).all()
        assert_golden(rewards, case["expected"]["advantages"])
        return
    with_epsilon = maxrl_advantage(rewards) * mean / (mean + case["inputs"]["epsilon"])
    assert_golden(with_epsilon, case["expected"]["advantages"])


@pytest.mark.parametrize(("right", "size"), [(1, 8), (3, 8), (7, 8), (1, 2)])
def test_a_case_by_hand(right, size):
    rewards = torch.tensor([[1.0] * right + [0.0] * (size - right)])
    want = [[(size - right) / right] * right + [-1.0] * (size - right)]
    torch.testing.assert_close(maxrl_advantage(rewards), torch.tensor(want))


def test_it_is_dr_grpo_over_the_mean():
    rewards = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        maxrl_advantage(rewards), dr_grpo_advantage(rewards) / rewards.mean(dim=1, keepdim=True)
    )


@pytest.mark.parametrize("p", [0.05, 0.4, 0.9])
def test_its_expectation_is_the_gradient_of_the_truncated_log_likelihood(p, size=4):
    """For a policy with success rate p, d log(probability) / dp is 1 / p if right and -1 / (1 - p) if wrong."""
    expectation = 0.0
    for answers in product([1.0, 0.0], repeat=size):
        rewards = torch.tensor([answers], dtype=torch.float64)
        slopes = torch.where(rewards == 1, 1 / p, -1 / (1 - p))
        chance = p ** sum(answers) * (1 - p) ** (size - sum(answers))
        expectation += chance * float((maxrl_advantage(rewards) * slopes).mean())
    assert expectation == pytest.approx(sum((1 - p) ** (k - 1) for k in range(1, size)))


@pytest.mark.parametrize(
    "rewards",
    [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [-1.0, -0.5, -1.0], [1.0, torch.nan, torch.nan], [0.1] * 7],
    ids=str,
)
def test_groups_with_advantage_0(rewards):
    assert maxrl_advantage(torch.tensor([rewards])).tolist() == [[0.0] * len(rewards)]


def test_integers():
    assert maxrl_advantage(torch.tensor([[1, 0, 0, 0]])).tolist() == [[3.0, -1.0, -1.0, -1.0]]

"""RENT: numbers from its formula, responses without tokens, and masked tokens."""

import pytest
import torch
from golden_cases import assert_golden, cases, tensor

from canon_trl.policy_rewards.rent import rent_reward

GOLDEN = [case for case in cases("wave1") if case["method"] == "rent"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_numbers_match_the_formula(case, dtype):
    inputs = case["inputs"]
    reward = rent_reward(tensor(inputs["entropies"], dtype), tensor(inputs["mask"]), empty=inputs["empty"])
    assert_golden(reward, case["expected"])


def test_a_case_by_hand():
    entropies = torch.tensor([[0.5, 1.5, 9.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    assert rent_reward(entropies, mask).tolist() == [-1.0, 0.0, -7.0]
    assert rent_reward(entropies, mask, empty=-2.5).tolist() == [-1.0, 0.0, -2.5]


def test_masked_tokens_never_count():
    entropies = torch.tensor([[1.0, torch.nan], [2.0, torch.inf]])
    assert rent_reward(entropies, torch.tensor([[1, 0], [1, 0]])).tolist() == [-1.0, -2.0]


def test_no_gradient_flows_through_the_reward():
    entropies = torch.ones(2, 3, requires_grad=True)
    assert not rent_reward(entropies, torch.ones(2, 3)).requires_grad


def test_a_long_response_in_bfloat16_keeps_its_digits():
    entropies = torch.full((1, 4096), 0.3, dtype=torch.bfloat16)
    reward = rent_reward(entropies, torch.ones(1, 4096))
    assert reward.dtype == torch.float32
    assert reward.item() == pytest.approx(-entropies[0, 0].item(), rel=1e-6)

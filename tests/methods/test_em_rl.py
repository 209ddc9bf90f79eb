"""EM-RL: numbers from its formulas, masked tokens, and how its two rewards relate to RENT and to each other."""

import math

import pytest
import torch
from golden_cases import assert_golden, cases, tensor

from canon_trl.policy_rewards import em_rl_sequence_reward, em_rl_token_reward, rent_reward

REWARDS = {"em_rl_sequence": (em_rl_sequence_reward, "log_probs"), "em_rl_token": (em_rl_token_reward, "entropies")}
GOLDEN = [case for case in cases("wave1") if case["method"] in REWARDS]
BOTH = pytest.mark.parametrize("reward", [em_rl_sequence_reward, em_rl_token_reward])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_numbers_match_the_formula(case, dtype):
    reward, reads = REWARDS[case["method"]]
    assert_golden(reward(tensor(case["inputs"][reads], dtype), tensor(case["inputs"]["mask"])), case["expected"])


def test_cases_by_hand():
    values = torch.tensor([[0.5, 1.5, 9.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    assert em_rl_token_reward(values, mask).tolist() == [-2.0, 0.0, 0.0]
    assert em_rl_sequence_reward(-values, mask).tolist() == [-2.0, 0.0, 0.0]
    assert em_rl_token_reward(values, mask, form="released").tolist() == [-1.0, 0.0, 0.0]
    assert em_rl_sequence_reward(-values, mask, form="released").tolist() == [-1.0, 0.0, 0.0]


def test_the_token_reward_is_rent_times_the_length():
    """And as released it is RENT, bit for bit."""
    entropies, mask = torch.rand(5, 7), torch.rand(5, 7) > 0.3
    mask[:, 0] = True
    rent = rent_reward(entropies, mask)
    torch.testing.assert_close(em_rl_token_reward(entropies, mask), rent * mask.sum(dim=1))
    assert torch.equal(em_rl_token_reward(entropies, mask, form="released"), rent)


@BOTH
def test_an_unknown_form_is_rejected(reward):
    with pytest.raises(ValueError, match="form='mean' must be 'paper' or 'released'"):
        reward(torch.ones(1, 1), torch.ones(1, 1), form="mean")


def test_both_have_the_same_mean_over_all_responses():
    """On a policy of one step, the mean of log p over the responses is minus the entropy."""
    probs = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    sequence = em_rl_sequence_reward(probs.log().unsqueeze(1), torch.ones(3, 1))
    token = em_rl_token_reward(torch.special.entr(probs).sum().reshape(1, 1), torch.ones(1, 1))
    assert (probs @ sequence).item() == pytest.approx(token.item()) == pytest.approx(-1.5 * math.log(2))


@BOTH
def test_masked_tokens_never_count(reward):
    values = torch.tensor([[1.0, torch.nan], [2.0, torch.inf]])
    assert reward(values, torch.tensor([[1, 0], [1, 0]])).abs().tolist() == [1.0, 2.0]


@BOTH
def test_no_gradient_flows_through_the_reward(reward):
    assert not reward(torch.ones(2, 3, requires_grad=True), torch.ones(2, 3)).requires_grad


@BOTH
def test_a_long_response_in_bfloat16_keeps_its_digits(reward):
    values = torch.full((1, 4096), 0.3, dtype=torch.bfloat16)
    got = reward(values, torch.ones(1, 4096))
    assert got.dtype == torch.float32
    assert got.abs().item() == pytest.approx(4096 * values[0, 0].item(), rel=1e-6)

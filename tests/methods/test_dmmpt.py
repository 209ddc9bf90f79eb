"""DMMPT: numbers from its formula, which responses count as right, and no effect at tau above 1."""

import math

import pytest
import torch
from golden_cases import cases, tensor

from canon_trl.method import find
from canon_trl.token_advantages import STAGE, TOKEN_ADVANTAGES, dmmpt_mask
from canon_trl.tokens import Tokens

GOLDEN = [case for case in cases("wave1") if case["method"] == "dmmpt"]
SURE, UNSURE = math.log(0.995), math.log(0.5)
LOG_PROBS = torch.tensor([[SURE, UNSURE, SURE], [SURE, UNSURE, SURE]])
ENTROPIES = torch.tensor([[0.1, 0.2, 9.0], [0.1, 0.4, 9.0]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 0]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_numbers_match_the_formula(case, dtype):
    inputs = case["inputs"]
    values = (tensor(inputs[name], dtype) for name in ("rewards", "log_probs", "entropies", "mask"))
    dropped = dmmpt_mask(*values, tau=inputs["tau"], sigma=inputs["sigma"])
    assert dropped.dtype == torch.bool
    assert dropped.tolist() == tensor(case["expected"]).bool().tolist()


def test_a_case_by_hand():
    """The mean entropies are 0.15 and 0.25; only the first lies below the target."""
    dropped = dmmpt_mask(torch.tensor([1.0, 1.0]), LOG_PROBS, ENTROPIES, MASK)
    assert dropped.tolist() == [[True, False, False], [False, False, False]]
    assert dmmpt_mask(torch.tensor([1.0, 1.0]), LOG_PROBS, ENTROPIES, MASK, sigma=0.3).sum() == 2
    assert not dmmpt_mask(torch.tensor([0.0, 0.0]), LOG_PROBS, ENTROPIES, MASK, sigma=9.0).any()


@pytest.mark.parametrize(
    ("reward", "right"), [(1.0, True), (1.1, True), (0.7 + 0.2 + 0.1, True), (0.9, False), (-1.0, False)]
)
def test_a_response_is_right_from_a_reward_of_1(reward, right):
    rewards = torch.tensor([reward, torch.nan], dtype=torch.float64)
    assert dmmpt_mask(rewards, LOG_PROBS, ENTROPIES, MASK, sigma=1.0).any(dim=1).tolist() == [right, False]


@pytest.mark.parametrize("options", [{"tau": 1.001}, {"sigma": 0.0}], ids=str)
def test_above_tau_1_and_at_sigma_0_no_token_is_dropped(options):
    tokens = Tokens.example(64, 20)
    tokens = Tokens.example(64, 20, log_probs=tokens.log_probs * 1e-4, entropies=tokens.entropies * 1e-4)
    assert TOKEN_ADVANTAGES["dmmpt"](tokens).any(), "the case must have tokens to drop"
    assert not TOKEN_ADVANTAGES["dmmpt"](tokens, **options).any()


def test_values_off_the_mask_and_empty_responses():
    log_probs, entropies = LOG_PROBS.clone(), ENTROPIES.clone()
    log_probs[:, 2] = entropies[:, 2] = torch.nan
    rewards = torch.tensor([1.0, 1.0])
    want = dmmpt_mask(rewards, LOG_PROBS, ENTROPIES, MASK)
    assert torch.equal(dmmpt_mask(rewards, log_probs, entropies, MASK), want)
    assert not dmmpt_mask(rewards, log_probs, entropies, torch.zeros(2, 3)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.0}, r"tau=0.0 must lie in \(0, 1e6\]"),
        ({"sigma": -0.1}, r"sigma=-0.1 must lie in \[0, 1e6\]"),
        ({"sigma": "low"}, "sigma='low' must be a number"),
    ],
    ids=str,
)
def test_options_that_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        dmmpt_mask(torch.ones(2), LOG_PROBS, ENTROPIES, MASK, **options)
    with pytest.raises(ValueError, match=message):
        find(STAGE, {"dmmpt": options})

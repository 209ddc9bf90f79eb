"""Clip_B: masks of the released code, a case by hand, and the tokens that are always kept."""

import math
from functools import partial

import pytest
import torch
from golden_cases import assert_golden, cases, tensor
from ranks import on_ranks

from canon_trl.advantages import grpo_advantage
from canon_trl.method import find
from canon_trl.token_advantages import STAGE, TOKEN_ADVANTAGES, clip_b_mask
from canon_trl.tokens import Tokens

GOLDEN = [case for case in cases("wave1_code") if case["method"] == "clip_b"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_masks_match_the_released_code(case, dtype):
    inputs, expected = case["inputs"], case["expected"]
    advantages = grpo_advantage(tensor(inputs["rewards"], dtype), eps=inputs["epsilon"])
    assert_golden(advantages, expected["advantages"])
    values = (tensor(inputs[name], dtype) for name in ("log_prob", "entropy", "response_mask"))
    dropped = clip_b_mask(advantages.flatten(), *values, mu=inputs["mu"])
    assert dropped.long().tolist() == expected["clipped"]
    assert int(dropped.sum()) == expected["n_clipped"]


def test_a_case_by_hand():
    """S is 0 where p = 1, and 0.5 * (h + ln 0.5) elsewhere: 0, 0, 0 and -0.25; mean -1/16, deviation 0.108."""
    log_probs = torch.tensor([[0.0, 0.0, 0.0, math.log(0.5)]])
    entropies = torch.tensor([[0.0, 0.0, 0.0, math.log(2) - 0.5]])
    mask, down = torch.ones(1, 4), torch.tensor([-1.0])
    assert clip_b_mask(down, log_probs, entropies, mask, mu=1.7).tolist() == [[False, False, False, True]]
    assert not clip_b_mask(down, log_probs, entropies, mask, mu=1.8).any()  # 3 / 16 is sqrt(3) deviations
    for advantage in (1.0, 0.0):
        assert not clip_b_mask(torch.tensor([advantage]), log_probs, entropies, mask, mu=0.0).any()


def test_equal_tokens_are_kept():
    """Also where rounding puts their mean above them."""
    for log_prob in torch.linspace(-3, 0, 50, dtype=torch.float64):
        log_probs = log_prob.expand(2, 3)
        assert not clip_b_mask(-torch.ones(2), log_probs, log_probs * 0 + 0.1, torch.ones(2, 3), mu=0.0).any()


def test_values_off_the_mask_have_no_effect():
    tokens = Tokens.example(8, 10, group=4)
    want = TOKEN_ADVANTAGES["clip_b"](tokens, mu=0.5)
    assert want.any() and not want[~tokens.mask].any()
    broken = [values.masked_fill(~tokens.mask, torch.nan) for values in (tokens.log_probs, tokens.entropies)]
    assert torch.equal(clip_b_mask(tokens.advantages, *broken, tokens.mask, mu=0.5), want)
    assert torch.equal(clip_b_mask(tokens.response_advantages, *broken, tokens.mask, mu=0.5), want)
    assert not clip_b_mask(tokens.advantages, *broken, torch.zeros(8, 10), mu=0.5).any()


def test_two_ranks_drop_the_tokens_of_one():
    tokens = Tokens.example(16, 20, group=4)
    values = (tokens.advantages, tokens.log_probs, tokens.entropies, tokens.mask)
    dropping = partial(clip_b_mask, mu=0.5)
    parts, whole = [[each[:4] for each in values], [each[4:] for each in values]], dropping(*values)
    assert not torch.equal(torch.cat([dropping(*part) for part in parts]), whole), "the case needs ranks that differ"
    assert torch.equal(torch.cat(on_ranks(dropping, parts)), whole)


def test_a_large_mu_drops_nothing():
    assert not TOKEN_ADVANTAGES["clip_b"](Tokens.example(64, 20), mu=1e6).any()


@pytest.mark.parametrize("mu", [-0.1, math.nan, "2", True])
def test_a_mu_that_is_rejected(mu):
    tokens = Tokens.example()
    with pytest.raises(ValueError, match=r"mu=.* must"):
        clip_b_mask(tokens.advantages, tokens.log_probs, tokens.entropies, tokens.mask, mu=mu)
    with pytest.raises(ValueError, match=r"mu=.* must"):
        find(STAGE, {"clip_b": {"mu": mu}})

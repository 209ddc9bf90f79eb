"""TEA: coefficients and gradients of the released function, a case by hand, and rows that have no covariance."""

import math

import pytest
import torch
from golden_cases import assert_golden, cases, tensor
from ranks import on_ranks

from canon_trl.loss_terms import LOSS_TERMS, STAGE, tea, tea_coefficients
from canon_trl.method import find
from canon_trl.tokens import Tokens

GOLDEN = cases("methods_tea_entropy")


def aggregate(per_token, mask, mode):
    total, lengths = (per_token * mask).sum(), mask.sum(dim=1)
    return {
        "token-mean": total / mask.sum(),
        "seq-mean-token-sum": total / len(mask),
        "seq-mean-token-mean": ((per_token * mask).sum(dim=1) / lengths).mean(),
    }[mode]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_the_term_matches_the_released_code(case, dtype):
    inputs, expected, mode = case["inputs"], case["expected"], case["inputs"]["loss_agg_mode"]
    mask = torch.arange(inputs["width"]) < torch.tensor(inputs["lengths"]).unsqueeze(1)
    log_probs, advantages = tensor(inputs["log_prob"], dtype), tensor(inputs["advantages"], dtype)
    entropies = tensor(inputs["entropy"], dtype).requires_grad_()
    options = {"scale": inputs["cov_alpha"], "most": inputs["clip_cov_ub"]}
    coefficients = tea_coefficients(log_probs, advantages, mask, **options)
    assert_golden(aggregate(coefficients, mask, mode), expected["mean_coefficient"])
    term = aggregate(tea(log_probs, entropies, advantages, mask, **options), mask, mode)
    assert_golden(-term.detach(), expected["entropy_term"])
    assert_golden(-torch.autograd.grad(term, entropies)[0], expected["grad_entropy"])


def test_a_case_by_hand():
    """Advantages -1 and 1, log-probabilities -1 and -3 with mean -2: the covariances are -1, 1 and 1, -1."""
    log_probs = torch.tensor([[-1.0, -3.0], [-1.0, -3.0]])
    advantages, mask = torch.tensor([-1.0, 1.0]), torch.ones(2, 2)
    small, large = math.exp(-1) / (math.e + math.exp(-1)), math.e / (math.e + math.exp(-1))
    want = torch.tensor([[small, large], [large, small]])
    torch.testing.assert_close(tea_coefficients(log_probs, advantages, mask, scale=5.0), 5 * want)
    capped = torch.tensor([[10 * small, 5.0], [5.0, 10 * small]])
    torch.testing.assert_close(tea_coefficients(log_probs, advantages, mask), capped)
    entropies = torch.tensor([[0.5, 2.0], [1.0, 0.0]])
    torch.testing.assert_close(tea(log_probs, entropies, advantages, mask), -capped * entropies)


def test_equal_advantages_share_the_bonus_equally():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    coefficients = tea_coefficients(-torch.rand(2, 4), torch.ones(2), mask, scale=1.0)
    torch.testing.assert_close(coefficients, torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0]]))


def test_two_ranks_have_the_coefficients_of_one():
    tokens = Tokens.example(16, 20, group=4)
    values = (tokens.log_probs, tokens.advantages, tokens.mask)
    parts = [[each[:4] for each in values], [each[4:] for each in values]]
    whole = tea_coefficients(*values)
    assert not torch.allclose(tea_coefficients(*parts[0]), whole[:4]), "the case needs ranks that differ"
    torch.testing.assert_close(torch.cat(on_ranks(tea_coefficients, parts)), whole)


def test_a_scale_of_0_adds_0():
    assert (LOSS_TERMS["tea"](Tokens.example(), scale=0.0) == 0).all()


def test_values_off_the_mask_and_empty_responses():
    log_probs = torch.tensor([[-1.0, torch.nan], [-2.0, torch.nan], [torch.nan, torch.nan]])
    entropies = torch.tensor([[1.0, torch.nan], [1.0, torch.nan], [torch.nan, torch.nan]], requires_grad=True)
    term = tea(log_probs, entropies, torch.tensor([1.0, -1.0, 0.0]), torch.tensor([[1, 0], [1, 0], [0, 0]]))
    assert term.tolist() == [[-5.0, 0.0], [-5.0, 0.0], [0.0, 0.0]]
    term.sum().backward()
    assert entropies.grad.tolist() == [[-5.0, 0.0], [-5.0, 0.0], [0.0, 0.0]]


def test_the_gradient_flows_through_the_entropies_alone():
    tokens = Tokens.example()
    LOSS_TERMS["tea"](tokens).sum().backward()
    assert tokens.log_probs.grad is None and tokens.entropies.grad.abs().max() > 0


@pytest.mark.parametrize("options", [{"scale": -1.0}, {"most": math.nan}, {"most": "5"}], ids=str)
def test_options_that_are_rejected(options):
    tokens = Tokens.example()
    with pytest.raises(ValueError, match=r"=.* must"):
        tea_coefficients(tokens.log_probs, tokens.advantages, tokens.mask, **options)
    with pytest.raises(ValueError, match=r"=.* must"):
        find(STAGE, {"tea": options})

"""DADS: weights of the released code, a case by hand, and its sum with TRL's KL term."""

import math

import pytest
import torch
from golden_cases import assert_golden, cases, tensor

from canon_trl.loss_terms import LOSS_TERMS, dads, dads_weights
from canon_trl.tokens import Tokens

GOLDEN = cases("methods_stcr_dads")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_weights_of_the_released_code(case, dtype):
    rewards, advantages = tensor(case["inputs"]["rewards"], dtype), tensor(case["expected"]["advantages_stcr"], dtype)
    assert_golden(dads_weights(rewards, advantages), case["expected"]["kl_weight"])


def test_a_case_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    weights = dads_weights(rewards, rewards - rewards.mean(dim=1, keepdim=True))
    hard, easy = 1 - math.exp(-math.e / 4), 1 - math.exp(-math.e * 3 / 4)
    torch.testing.assert_close(weights, torch.tensor([[hard, 1, 1, 1], [easy, easy, easy, 1], [1, 1, 1, 1]]))


def test_equal_groups_keep_the_whole_weight():
    """Also where an estimator, such as one that centres over the batch, gives them a positive advantage."""
    assert torch.equal(dads_weights(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2)), torch.ones(2, 2))


def test_signed_rounded_and_missing_rewards():
    assert torch.equal(dads_weights(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, -1.0]]))[:, 1], torch.ones(1))
    rewards = tensor([[0.7 + 0.2 + 0.1, -1.0, torch.nan]])
    weights = dads_weights(rewards, tensor([[1.0, -1.0, 0.0]]))
    assert_golden(weights, [[1 - math.exp(-math.e / 2), 1.0, 1.0]])


def test_the_sum_with_trls_term_is_the_weighted_divergence():
    tokens = Tokens.example(8, 10, group=4, beta=0.1)
    log_ratio = tokens.ref_log_probs - tokens.log_probs
    divergence = (log_ratio.exp() - log_ratio - 1) * tokens.mask
    weights = dads_weights(tokens.prompt_rewards, tokens.response_advantages.view(-1, 4)).view(-1, 1)
    assert (weights < 1).any(), "the case needs a right answer in a mixed group"
    total = 0.1 * divergence + LOSS_TERMS["dads"](tokens)
    torch.testing.assert_close(total, 0.1 * weights * divergence)
    assert (LOSS_TERMS["dads"](tokens) <= 0).all()


def test_shuffled_rows_have_the_same_term():
    tokens = Tokens.example(8, 10, group=4, beta=0.1)
    rows = torch.tensor([3, 6, 0, 2, 7, 1, 5, 4])
    shuffled = [getattr(tokens, name) for name in LOSS_TERMS["dads"].reads]
    shuffled = [value[rows] if isinstance(value, torch.Tensor) else value for value in shuffled]
    assert torch.equal(dads(*shuffled), LOSS_TERMS["dads"](tokens)[rows])


def test_values_off_the_mask_have_no_effect():
    log_probs = torch.tensor([[-1.0, torch.nan]], requires_grad=True)
    rewards, advantages, mask = torch.tensor([[1.0, 0.0]]), torch.tensor([0.5]), torch.tensor([[1, 0]])
    term = dads(log_probs, torch.tensor([[-2.0, torch.nan]]), rewards, advantages, mask, 1.0)
    torch.testing.assert_close(term, torch.tensor([[-math.exp(-math.e / 2) * math.exp(-1), 0.0]]))
    term.sum().backward()
    assert log_probs.grad.isfinite().all() and log_probs.grad[0, 1] == 0


def test_without_a_divergence_the_term_is_0():
    tokens = Tokens.example(beta=0.1)
    assert (LOSS_TERMS["dads"](Tokens.example(beta=0.1, ref_log_probs=tokens.log_probs.detach())) == 0).all()
    assert (LOSS_TERMS["dads"](Tokens.example(beta=0.0)) == 0).all()

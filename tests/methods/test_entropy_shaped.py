"""The entropy-shaped advantage: numbers from its formula, its bounds, and alpha = 0."""

import pytest
import torch
from golden_cases import assert_golden, cases, tensor

from canon_trl.token_advantages.entropy_shaped import entropy_shaped

GOLDEN = [case for case in cases("wave1") if case["method"] == "entropy_shaped"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_numbers_match_the_formula(case, dtype):
    inputs = case["inputs"]
    shaped = entropy_shaped(
        tensor(inputs["advantages"], dtype),
        tensor(inputs["entropies"], dtype),
        alpha=inputs["alpha"],
        kappa=inputs["kappa"],
    )
    assert_golden(shaped, case["expected"])


def test_a_case_by_hand():
    entropies = torch.tensor([[0.5, 2.0], [0.5, 2.0], [0.5, 2.0]])
    shaped = entropy_shaped(torch.tensor([1.0, -1.0, 0.0]), entropies, alpha=0.4, kappa=2.0)
    torch.testing.assert_close(shaped, torch.tensor([[1.2, 1.5], [-0.8, -0.5], [0.0, 0.0]]))
    assert torch.equal(shaped, entropy_shaped(torch.tensor([[1.0] * 2, [-1.0] * 2, [0.0] * 2]), entropies))


def test_alpha_0_is_bit_for_bit_the_input():
    advantages = torch.tensor([[0.1, -0.0, 0.0], [-3.3, 1e-30, 7.0]])
    shaped = entropy_shaped(advantages, torch.rand(2, 3) * 9, alpha=0.0)
    assert torch.equal(shaped.view(torch.int32), advantages.view(torch.int32))


def test_advantages_keep_their_sign_and_never_decrease():
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(50, 40, generator=generator)
    shaped = entropy_shaped(advantages, torch.rand(50, 40, generator=generator) * 12, alpha=5.0, kappa=1.001)
    assert torch.equal(shaped.sign(), advantages.sign())
    assert (shaped >= advantages).all()


def test_no_gradient_flows_through_the_entropies():
    entropies = torch.ones(2, 3, requires_grad=True)
    advantages = torch.ones(2, 3, requires_grad=True)
    entropy_shaped(advantages, entropies).sum().backward()
    assert entropies.grad is None
    assert advantages.grad is not None


def test_bad_entropies_do_not_change_the_advantage():
    shaped = entropy_shaped(torch.tensor([1.0]), torch.tensor([[torch.nan, -1e-7, 0.0]]))
    assert shaped.tolist() == [[1.0, 1.0, 1.0]]


def test_dtype_follows_the_advantages():
    assert entropy_shaped(torch.ones(1), torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float32

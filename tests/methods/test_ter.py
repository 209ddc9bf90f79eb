"""TER: value and gradient by hand on both sides of the target."""

import pytest
import torch

from canon_trl.loss_terms.ter import ter

MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def entropies():
    return torch.tensor([[0.2, 0.4, 9.0], [0.9, torch.nan, 9.0]], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("measured", "target", "value", "slope"),
    [
        (None, 0.3, 0.1 * 0.2, 1),  # the mean of these tokens is 0.5
        ({}, 0.8, 0.1 * 0.3, -1),
        ({"entropy": 0.9}, 0.3, 0.1 * 0.2, 1),
        ({"entropy": 0.1}, 0.8, 0.1 * 0.3, -1),
        ({"entropy": 0.2}, 0.3, -0.1 * 0.2, -1),  # below the target in the last step, above it in the micro-batch
        ({"entropy": 0.3}, 0.3, 0.0, 0),
    ],
)
def test_value_and_gradient_by_hand(measured, target, value, slope):
    tokens = entropies()
    term = ter(tokens, MASK, measured, coef=0.1, target=target)
    assert term.dim() == 0
    assert term.item() == pytest.approx(value)
    term.backward()
    torch.testing.assert_close(tokens.grad, slope * 0.1 / 3 * MASK.double())


def test_defaults_are_those_of_the_paper():
    assert ter(torch.full((2, 3), 1.55), MASK, None).item() == pytest.approx(1e-3)
    assert ter(torch.full((2, 3), 0.05), MASK, None).item() == pytest.approx(5e-4)


def test_a_micro_batch_without_tokens_has_no_gradient():
    tokens = torch.ones(2, 3, requires_grad=True)
    ter(tokens, torch.zeros(2, 3), {"entropy": 1.0}).backward()
    assert (tokens.grad == 0).all()


def test_a_coefficient_of_0_adds_0():
    assert ter(torch.ones(2, 3), MASK, None, coef=0.0).item() == 0


def test_bfloat16_is_averaged_in_float32():
    term = ter(torch.full((1, 4096), 0.3, dtype=torch.bfloat16), torch.ones(1, 4096), None, coef=1.0, target=0.0)
    assert term.dtype == torch.float32
    assert term.item() == pytest.approx(0.30078125)

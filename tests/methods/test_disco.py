"""DisCO: gradients of the released code, values by hand, and groups without right and wrong answers."""

import math

import pytest
import torch
from golden_cases import assert_golden, cases, tensor

from canon_trl.policy_losses import disco_loss
from canon_trl.tokens import token_mean

GOLDEN = cases("methods_disco")


def arguments(inputs, dtype=torch.float64):
    lengths = torch.tensor(inputs["lengths"]).unsqueeze(1)
    mask = torch.arange(inputs["width"]) < lengths
    log_probs = tensor(inputs["log_prob"], dtype).requires_grad_()
    options = {
        "score": "log_likelihood" if inputs["variant"].endswith("logL") else "likelihood_ratio",
        "basic": "discob" in inputs["variant"],
        "tau": inputs.get("tau", 10.0),
        "beta": inputs["beta"],
        "delta": inputs["delta"],
        "kl": inputs["kl_type"],
    }
    return (log_probs, tensor(inputs["old_log_prob"], dtype), tensor(inputs["rewards"]), mask), options


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_gradients_match_the_released_code(case, dtype):
    (log_probs, *rest), options = arguments(case["inputs"], dtype)
    loss = disco_loss(log_probs, *rest, **options)
    loss.backward()
    assert_golden(log_probs.grad, case["expected"]["grad_log_prob"])
    if options["basic"] or "no_valid_group" in case["name"]:
        assert_golden(loss.detach(), case["expected"]["loss"])


def test_a_case_by_hand():
    """Scores -1 and -2 for right, -3 and -4 for wrong; the divergence exceeds delta by 0.1 nats."""
    log_probs = torch.tensor([[-1.0, -1.0], [-2.0, 0.0], [-3.0, 0.0], [-4.0, -4.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1]])
    rewards = torch.tensor([[1, 1, 0, 0]])
    right = -1.5
    drift = 100 * (0.2 - 0.1) * 0.2
    options = {"beta": 100.0, "delta": 0.1}
    basic = disco_loss(log_probs, log_probs + 0.2, rewards, mask, basic=True, **options)
    assert basic.item() == pytest.approx(-(right + 3.5) + drift)
    soft = 2 * math.log((math.exp(-1.5) + math.exp(-2)) / 2)
    full = disco_loss(log_probs, log_probs + 0.2, rewards, mask, tau=2.0, **options)
    assert full.item() == pytest.approx(-(right - soft) + drift)


def test_small_tau_takes_the_likeliest_wrong_answer_and_large_tau_is_the_basic_form():
    (log_probs, *rest), _ = arguments(GOLDEN[0]["inputs"])
    basic = disco_loss(log_probs, *rest, basic=True)
    torch.testing.assert_close(disco_loss(log_probs, *rest, tau=1e7), basic, atol=1e-6, rtol=1e-6)
    rewards, mask = torch.tensor([[1, 0, 0]]), torch.ones(3, 1)
    log_probs = torch.tensor([[-1.0], [-2.0], [-5.0]], dtype=torch.float64, requires_grad=True)
    disco_loss(log_probs, log_probs.detach(), rewards, mask, tau=0.01).backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([[-1.0], [1.0], [0.0]], dtype=torch.float64))


@pytest.mark.parametrize("kl", ["kl", "low_var_kl"])
@pytest.mark.parametrize("basic", [False, True])
def test_without_right_and_wrong_answers_only_the_constraint_remains(basic, kl):
    log_probs = torch.full((6, 2), -1.0, requires_grad=True)
    rewards = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.5, torch.nan]])
    loss = disco_loss(log_probs, torch.full((6, 2), -0.5), rewards, torch.ones(6, 2), basic=basic, kl=kl)
    divergence = 0.5 if kl == "kl" else math.exp(-0.5) - 1 + 0.5
    assert loss.item() == pytest.approx(1000 * (divergence - 1e-4) * divergence, rel=1e-5)
    loss.backward()
    assert log_probs.grad.isfinite().all()


@pytest.mark.parametrize("score", ["log_likelihood", "likelihood_ratio"])
def test_masked_tokens_never_count(score):
    rewards = torch.tensor([[1, 0, 0]])
    mask = torch.tensor([[1, 0], [1, 0], [0, 0]])
    gradients = []
    for padding in (0.0, 50.0, torch.nan):
        log_probs = torch.tensor([[-1.0, padding], [-2.0, -padding], [padding, padding]], requires_grad=True)
        disco_loss(log_probs, torch.full((3, 2), -0.9), rewards, mask, score=score).backward()
        gradients.append(log_probs.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    assert (gradients[0][mask == 0] == 0).all(), "a response without a token is in neither set"


def test_two_ranks_have_the_gradient_of_one():
    """With half of the groups each, the mean of their gradients is the gradient of a single rank."""
    (log_probs, old, rewards, mask), options = arguments(GOLDEN[2]["inputs"])
    assert GOLDEN[2]["expected"]["constraint_violated"] == 1
    disco_loss(log_probs, old, rewards, mask, **options).backward()
    drift = (old - log_probs).detach()
    halves = []
    for rows, group in ((slice(0, 4), slice(0, 1)), (slice(4, 8), slice(1, 2))):
        half = log_probs.detach()[rows].requires_grad_()

        def over_both(values, among):
            local = values.masked_fill(~among, 0.0).sum() * 2 / mask.sum()
            return local + (token_mean(drift, mask) - local).detach()

        disco_loss(half, old[rows], rewards[group], mask[rows], over_both, **options).backward()
        halves.append(half.grad / 2)
    torch.testing.assert_close(torch.cat(halves), log_probs.grad)


def test_bfloat16_is_computed_in_float32():
    log_probs = torch.full((2, 3), -1.0, dtype=torch.bfloat16, requires_grad=True)
    loss = disco_loss(log_probs, log_probs.detach(), torch.tensor([[1, 0]]), torch.ones(2, 3))
    assert loss.dtype == torch.float32

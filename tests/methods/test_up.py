"""UP: gradients of the open pull request, a case by hand, and PPO's loss without positive advantages."""

import math

import pytest
import torch
from golden_cases import assert_golden, cases, tensor

from canon_trl.policy_losses import POLICY_LOSSES, up_weights
from canon_trl.tokens import Tokens

# In the others `delta` caps ratios, or the ratio is that of the response; the trainer rejects both.
GOLDEN = [
    case
    for case in cases("wave1_code")
    if case["method"] == "up"
    and case["inputs"]["delta"] is None
    and case["inputs"]["importance_sampling_level"] == "token"
]


def surrogate(log_probs, old, advantages, low=0.2, high=math.inf):
    """TRL's loss per token."""
    ratio = (log_probs - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_loss_and_gradient_match_the_pull_request(case, dtype):
    inputs, expected = case["inputs"], case["expected"]
    names = ("log_prob", "old_log_prob", "advantages", "response_mask")
    log_probs, old, advantages, mask = (tensor(inputs[name], dtype) for name in names)
    log_probs.requires_grad_()
    advantages = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
    shaped = advantages * up_weights(log_probs, old, advantages)
    loss = (surrogate(log_probs, old, shaped, inputs["epsilon_low"]) * mask).sum() / mask.sum()
    assert_golden(loss.detach(), expected["loss"])
    assert_golden(torch.autograd.grad(loss, log_probs)[0], expected["grad_log_prob"])


def test_a_case_by_hand():
    log_probs = torch.log(torch.tensor([[0.9, 0.1, 0.5]])).requires_grad_()
    old = torch.log(torch.tensor([[0.1, 0.9, 0.5]]))
    for advantage, want in ((2.0, [-2.0, -2.0, -2.0]), (-2.0, [18.0, 0.0, 2.0]), (0.0, [0.0, 0.0, 0.0])):
        shaped = advantage * up_weights(log_probs, old, torch.tensor([advantage]))
        (gradient,) = torch.autograd.grad(surrogate(log_probs, old, shaped).sum(), log_probs)
        torch.testing.assert_close(gradient, torch.tensor([want]))


def test_without_positive_advantages_nothing_changes():
    tokens = Tokens.example(16, 20)
    tokens = Tokens.example(16, 20, advantages=-tokens.advantages.abs())
    assert torch.equal(POLICY_LOSSES["up"](tokens), tokens.advantages)


def test_on_policy_nothing_changes():
    tokens = Tokens.example(16, 20)
    tokens = Tokens.example(16, 20, old_log_probs=tokens.log_probs.detach())
    assert torch.equal(POLICY_LOSSES["up"](tokens), tokens.advantages)
    assert not torch.equal(POLICY_LOSSES["up"](Tokens.example(16, 20)), tokens.advantages)


def test_no_gradient_flows_through_the_weights():
    tokens = Tokens.example()
    assert not up_weights(tokens.log_probs, tokens.old_log_probs, tokens.advantages).requires_grad

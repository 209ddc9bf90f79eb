"""DPPO: gradients and dropped tokens of released code, a case by hand, and what is left at infinite bounds."""

import math

import pytest
import torch
from golden_cases import assert_golden, cases, tensor

from canon_trl.config.loss_stages import find_policy_loss
from canon_trl.policy_losses import POLICY_LOSSES, dppo, dppo_weights
from canon_trl.tokens import Tokens

GOLDEN = [case for case in cases("wave1_code") if case["method"] in ("dppo_tv", "dppo_kl")]
UNBOUNDED = {"low": math.inf, "high": math.inf, "cap": math.inf}


def aggregate(per_token, mask, inputs):
    total, lengths = (per_token * mask).sum(), mask.sum(dim=1)
    if inputs["flavour"] != "verl":
        return total
    rows = (lengths > 0).sum()
    return {
        "token-mean": total / mask.sum(),
        "seq-mean-token-sum": total / rows,
        "seq-mean-token-mean": ((per_token * mask).sum(dim=1) / lengths.clamp(min=1)).sum() / rows,
        "seq-mean-token-sum-norm": total / (rows * mask.shape[1]),
    }[inputs["loss_agg_mode"]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_gradients_match_released_code(case, dtype):
    inputs, expected = case["inputs"], case["expected"]
    names = ("log_prob", "old_log_prob", "advantages", "response_mask")
    log_probs, old, advantages, mask = (tensor(inputs[name], dtype) for name in names)
    log_probs.requires_grad_()
    name = {"verl": "clip_ratio", "skyrl": "delta", "prime_rl": "dppo_mask"}[inputs["flavour"]]
    low, high, cap = inputs[f"{name}_low"], inputs[f"{name}_high"], inputs.get("clip_ratio_c", math.inf)
    weights = dppo_weights(log_probs, old, advantages, divergence=inputs["variant"], low=low, high=high, cap=cap)
    advantages = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
    penalty = inputs.get("kl_tau", 0.0) * (log_probs - old).square()  # prime-rl's own, not part of DPPO
    loss = aggregate(penalty - advantages * weights * (log_probs - old).exp(), mask, inputs)
    assert_golden(torch.autograd.grad(loss, log_probs)[0], expected["grad_log_prob"])
    dropped = (weights == 0) & mask.bool()
    if inputs["flavour"] == "skyrl":  # keeps tokens whose advantage is 0, which have no loss either way
        dropped &= advantages != 0
    assert int(dropped.sum()) == expected["n_dropped"]
    assert dropped.long().tolist() == expected.get("dropped", dropped.long().tolist())


@pytest.mark.parametrize(
    ("advantage", "now", "before", "kept_tv", "kept_kl"),
    [
        (1.0, 0.8, 0.5, False, False),  # rises by 0.3; the divergence is 0.223
        (-1.0, 0.8, 0.5, True, True),  # against its advantage
        (-1.0, 0.5, 0.8, False, False),  # falls by 0.3; the divergence is 0.193
        (1.0, 0.5, 0.8, True, True),
        (1.0, 0.05, 0.001, True, True),  # a ratio of 50
    ],
)
def test_a_case_by_hand(advantage, now, before, kept_tv, kept_kl):
    values = torch.tensor([[math.log(now)]]), torch.tensor([[math.log(before)]]), torch.tensor([advantage])
    assert bool(dppo_weights(*values, cap=math.inf)) is kept_tv
    assert bool(dppo_weights(*values, divergence="kl", low=0.15, high=0.15, cap=math.inf)) is kept_kl
    assert dppo_weights(*values, low=0.4, high=0.4).item() == pytest.approx(min(1.0, 20 * before / now))


def test_the_bound_of_each_direction():
    rise, fall = torch.log(torch.tensor([[0.5, 0.8]])), torch.log(torch.tensor([[0.8, 0.5]]))
    assert dppo_weights(fall, rise, torch.tensor([1.0]), low=0.0, high=0.4).tolist() == [[1.0, 1.0]]
    assert dppo_weights(fall, rise, torch.tensor([1.0]), low=0.4, high=0.1).tolist() == [[0.0, 1.0]]
    assert dppo_weights(fall, rise, torch.tensor([-1.0]), low=0.1, high=0.4).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("divergence", ["tv", "kl"])
def test_infinite_bounds_are_the_plain_policy_gradient(divergence):
    tokens = Tokens.example(16, 20)
    left = POLICY_LOSSES["dppo"](tokens, divergence=divergence, **UNBOUNDED)
    assert torch.equal(left, tokens.advantages)
    assert not torch.equal(POLICY_LOSSES["dppo"](tokens, divergence=divergence, low=0.01, high=0.01), left)


def test_the_probability_of_the_sampler_decides_where_there_is_one():
    log_probs, old, advantages = (
        torch.log(torch.tensor([[0.9, 0.9]])),
        torch.log(torch.tensor([[0.9, 0.9]])),
        torch.ones(1, 2),
    )
    reported = torch.log(torch.tensor([[0.6, math.nan]]))
    assert dppo(log_probs, old, reported, advantages).tolist() == [[0.0, 1.0]]


def test_the_share_of_dropped_tokens():
    log_probs = torch.log(torch.tensor([[0.9, 0.9, 0.5, 0.9]]))
    old = torch.log(torch.tensor([[0.5, 0.9, 0.5, 0.1]]))
    given = {"log_probs": log_probs, "old_log_probs": old, "sampling_log_probs": old * torch.nan}
    given |= {"advantages": torch.tensor([[1.0, 1.0, 1.0, 1.0]]), "mask": torch.tensor([[True, True, True, False]])}
    method = POLICY_LOSSES["dppo"]
    reported = method.reports(*given.values(), lambda values, mask: values[mask].mean(), **method.all_options)
    assert reported["frac_gated"].item() == pytest.approx(1 / 3)


def test_no_gradient_flows_through_the_weights():
    tokens = Tokens.example()
    assert not dppo_weights(tokens.log_probs, tokens.old_log_probs, tokens.advantages).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "js"}, "divergence='js' must be 'tv' or 'kl'"),
        ({"low": -0.1}, r"low=-0.1 must lie in \[0, inf\]"),
        ({"high": math.nan}, r"high=nan must lie in \[0, inf\]"),
        ({"cap": 0.5}, r"cap=0.5 must lie in \[1, inf\]"),
    ],
    ids=str,
)
def test_options_that_are_rejected(options, message):
    tokens = Tokens.example()
    with pytest.raises(ValueError, match=message):
        dppo_weights(tokens.log_probs, tokens.old_log_probs, tokens.advantages, **options)
    with pytest.raises(ValueError, match=message):
        find_policy_loss({"dppo": options})

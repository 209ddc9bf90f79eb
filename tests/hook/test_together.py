"""Advantage estimators with policy losses, with and without dynamic sampling: the numbers that reach the loss."""

import math
from itertools import cycle, product, repeat

import pytest
import torch
from observe import keep_rollouts
from toy import assert_same_parameters, logged, make_trainer, parameters

from canon_trl.advantages import ESTIMATORS
from canon_trl.policy_losses import POLICY_LOSSES, OnTRL, clip_cov_mask, dppo_weights, kl_cov_mask, up_weights

# What an estimator needs in addition to its defaults: options and fields of the config.
NEEDED = {"canon": {"mu": 0.7}, "mix": {"dr_grpo": 0.5, "opo": 0.5}, "pass_at_k": {"k": 2}, "pshw": {"low": 0}}
FIELDS = {name: {"advantage_estimator_kwargs": options} for name, options in NEEDED.items()}
FIELDS["canon"] = {"canon_mu": 0.7}
OPTIONS = {
    None: {},
    "clip_cov": {"low": 0.0, "high": 9.0, "ratio": 1.0},  # every candidate, so nothing is random
    "kl_cov": {"fraction": 0.2, "coef": 2.0},
    "dppo": {"low": 0.01, "high": 0.01, "cap": 1.1},
    "up": {},
}


def test_options_cover_every_loss_that_builds_on_trls():
    """Whole losses are missing, as they combine with no estimator."""
    assert OPTIONS.keys() - {None} == {name for name, loss in POLICY_LOSSES.items() if isinstance(loss, OnTRL)}


# Every estimator with every loss, and with dynamic sampling and one of the losses in turn.
CASES = [*product(ESTIMATORS, OPTIONS, [False]), *zip(ESTIMATORS, cycle(OPTIONS), repeat(True), strict=False)]


@pytest.mark.parametrize(("estimator", "policy_loss", "dynamic_sampling"), CASES, ids=str)
def test_combination(tmp_path, estimator, policy_loss, dynamic_sampling):
    options = {"policy_loss": policy_loss, "policy_loss_kwargs": OPTIONS[policy_loss]} if policy_loss else {}
    trainer = make_trainer(
        tmp_path,
        advantage_estimator=estimator,
        dynamic_sampling=dynamic_sampling,
        num_iterations=2,
        max_steps=2,
        learning_rate=1e-2,
        **options,
        **FIELDS.get(estimator, {}),
    )
    rollouts = keep_rollouts(trainer)
    seen = []
    trainer.on_tokens(seen.append)
    before = parameters(trainer)
    trainer.train()
    (rollout,) = rollouts
    wanted = ESTIMATORS[estimator](rollout, **NEEDED.get(estimator, {})).flatten(0, 1)
    assert wanted.abs().max() > 0, "the case needs something to learn"
    if dynamic_sampling:
        assert (rollout.rewards.amax(dim=1) > rollout.rewards.amin(dim=1)).all()
    # These act once the policy has moved; UP only where an advantage is positive.
    acted = policy_loss not in ("dppo", "up") or (policy_loss == "up" and bool((wanted <= 0).all()))
    for tokens in seen:
        mask, given = tokens.mask, wanted[tokens.response]
        want = given if given.dim() == 2 else given.unsqueeze(1).expand(mask.shape)
        if policy_loss == "clip_cov":
            clip = {"epsilon_low": 0.2, "epsilon_high": 0.28}
            selected = clip_cov_mask(
                tokens.log_probs, tokens.old_log_probs, given, mask, **clip, **OPTIONS["clip_cov"]
            )
            assert selected.any()
            want = want * ~selected
        if policy_loss == "kl_cov":
            selected = kl_cov_mask(tokens.log_probs, given, mask, fraction=0.2)
            assert selected.any()
            penalty = 2.0 * (tokens.log_probs - tokens.old_log_probs).abs() * selected
            assert torch.equal(trainer.args.make_policy_loss()(tokens), penalty)
        if policy_loss == "dppo":
            weights = dppo_weights(tokens.log_probs, tokens.old_log_probs, want, **OPTIONS["dppo"])
            acted |= bool((weights != 1)[mask].any())
            want = want * weights
        if policy_loss == "up":
            weights = up_weights(tokens.log_probs, tokens.old_log_probs, want)
            acted |= bool((weights != 1)[mask].any())
            want = want * weights
        assert torch.equal(tokens.advantages[mask], want[mask])
    assert len(seen) == 2 and acted
    entries = logged(trainer)
    assert all(math.isfinite(entry["loss"]) for entry in entries)
    assert any(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())
    if policy_loss in ("clip_cov", "kl_cov"):
        assert all(entry["policy_loss/frac_gated"] > 0 for entry in entries)


@pytest.mark.parametrize("policy_loss", OPTIONS)
def test_a_combination_resumes(tmp_path, policy_loss):
    """CANON with the random metric, a policy loss and dynamic sampling at once, in the middle of a rollout."""
    options = {"policy_loss": policy_loss, "policy_loss_kwargs": OPTIONS[policy_loss]} if policy_loss else {}
    options |= {"canon_metric": "random", "dynamic_sampling": True, "num_iterations": 2, "max_steps": 4}
    options |= {"save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert_same_parameters(parameters(resumed), parameters(whole))

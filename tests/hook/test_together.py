"""Any advantage estimator with any policy loss, with dynamic sampling and without: the numbers that reach the loss."""

import math
from itertools import product

import pytest
import torch
from observe import keep_rollouts
from toy import assert_same_parameters, logged, make_trainer, parameters

from canon_trl.advantages import ESTIMATORS
from canon_trl.policy_losses import POLICY_LOSSES, clip_cov_mask, kl_cov_mask

# What an estimator needs beyond its defaults: options, and the fields of the config that say so.
NEEDED = {"canon": {"mu": 0.7}, "mix": {"dr_grpo": 0.5, "opo": 0.5}}
FIELDS = {"canon": {"canon_mu": 0.7}, "mix": {"advantage_estimator_kwargs": NEEDED["mix"]}}
OPTIONS = {
    None: {},
    "clip_cov": {"low": 0.0, "high": 9.0, "ratio": 1.0},  # every candidate, so nothing is left to chance
    "kl_cov": {"fraction": 0.2, "coef": 2.0},
}


def test_the_tables_are_whole():
    assert OPTIONS.keys() - {None} == POLICY_LOSSES.keys()


def watch(trainer):
    """What the loss is computed from: the micro-batch, its log-probabilities and its advantages."""
    seen = []
    if trainer._gate is None:
        compute = trainer._compute_loss

        def keep(model, inputs):
            seen.append((dict(inputs), None, inputs["advantages"]))
            return compute(model, inputs)

        trainer._compute_loss = keep
        return seen
    gated = trainer._gate.advantages

    def keep_gated(log_probs, inputs, *args, **kwargs):
        advantages = gated(log_probs, inputs, *args, **kwargs)
        seen.append((dict(inputs), log_probs.detach(), advantages.detach()))
        return advantages

    trainer._gate.advantages = keep_gated
    return seen


@pytest.mark.parametrize(
    ("estimator", "policy_loss", "dynamic_sampling"), product(ESTIMATORS, OPTIONS, [False, True]), ids=str
)
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
    rollouts, _ = keep_rollouts(trainer)
    seen = watch(trainer)
    before = parameters(trainer)
    trainer.train()
    (rollout,) = rollouts
    wanted = ESTIMATORS[estimator](rollout, **NEEDED.get(estimator, {})).flatten()
    assert wanted.abs().max() > 0, "the case needs something to learn"
    if dynamic_sampling:
        assert (rollout.rewards.amax(dim=1) > rollout.rewards.amin(dim=1)).all()
    for inputs, log_probs, advantages in seen:
        if policy_loss is None:
            assert sorted(advantages.tolist()) == sorted(wanted.tolist())
            continue
        response = wanted[inputs["response"]].unsqueeze(1)
        old, mask = inputs["old_per_token_logps"], inputs["completion_mask"].bool()
        if policy_loss == "clip_cov":
            selected = clip_cov_mask(
                log_probs, old, response.squeeze(1), mask, epsilon_low=0.2, epsilon_high=0.28, **OPTIONS["clip_cov"]
            )
            want = response * ~selected
        else:
            selected = kl_cov_mask(log_probs, response.squeeze(1), mask, fraction=0.2)
            penalty = 2.0 * (log_probs - old).abs() / (log_probs - old).exp()
            want = response - penalty * selected
        assert selected.any()
        torch.testing.assert_close(advantages[mask], want.expand(mask.shape)[mask], atol=1e-6, rtol=1e-5)
    assert len(seen) == 2
    entries = logged(trainer)
    assert all(math.isfinite(entry["loss"]) for entry in entries)
    assert any(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())
    if policy_loss:
        assert all(entry["policy_loss/frac_gated"] > 0 for entry in entries)


@pytest.mark.parametrize("policy_loss", OPTIONS)
def test_a_combination_resumes(tmp_path, policy_loss):
    """CANON by the random metric, A-GRAE's companions and dynamic sampling at once, in the middle of a rollout."""
    options = {"policy_loss": policy_loss, "policy_loss_kwargs": OPTIONS[policy_loss]} if policy_loss else {}
    options |= {"canon_metric": "random", "dynamic_sampling": True, "num_iterations": 2, "max_steps": 4}
    options |= {"save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert_same_parameters(parameters(resumed), parameters(whole))

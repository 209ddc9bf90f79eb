"""The first method of each stage in the trainer: it takes effect, its numbers match its function, and it resumes."""

import math

import pytest
import torch
from residents import FIRST
from toy import assert_resumes, assert_same_parameters, logged, make_trainer, parameters

from canon_trl.loss_terms import ter
from canon_trl.policy_losses import disco_loss
from canon_trl.token_advantages import entropy_shaped


def trained(folder, observe=None, **options):
    trainer = make_trainer(folder, **({"num_iterations": 2, "max_steps": 4} | options))
    if observe is not None:
        trainer.on_tokens(observe)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    trainer = trained(tmp_path_factory.mktemp("plain"))
    assert all(entry["grad_norm"] > 0 for entry in logged(trainer)), "the case needs a gradient at every step"
    return trainer


@pytest.mark.parametrize("field", FIRST)
def test_it_changes_training(tmp_path, plain, field):
    trainer = trained(tmp_path, **{field: FIRST[field]})
    assert all(math.isfinite(entry["loss"]) for entry in logged(trainer))
    ends = parameters(trainer)
    assert any(not torch.equal(ends[name], value) for name, value in parameters(plain).items())


@pytest.mark.parametrize("field", FIRST)
def test_it_resumes_bit_for_bit(tmp_path, field):
    assert_resumes(make_trainer, tmp_path, num_iterations=2, **{field: FIRST[field]})


def test_advantages_are_shaped_by_the_entropy_of_each_update(tmp_path):
    seen, rollouts = [], []
    trainer = make_trainer(tmp_path, max_steps=2, num_iterations=2, token_advantage=FIRST["token_advantage"])
    trainer.on_tokens(seen.append)
    trainer.on_rollout(lambda rollout, advantages: rollouts.append(advantages))
    trainer.train()
    first, second = seen
    for tokens in seen:
        want = entropy_shaped(rollouts[0].flatten()[tokens.response], tokens.entropies, alpha=0.4)
        assert torch.equal(tokens.advantages, want.masked_fill(~tokens.mask, 0.0))
    assert not torch.equal(first.advantages, second.advantages), "the policy must have moved"


def test_the_term_reads_the_entropy_of_the_last_step(tmp_path):
    seen = []
    options = FIRST["loss_term"]["ter"]
    trainer = trained(tmp_path, seen.append, loss_term=FIRST["loss_term"])
    means = []
    for tokens, entry in zip(seen, logged(trainer), strict=True):
        assert tokens.measured.get("entropy") == (pytest.approx(means[-1], rel=1e-5) if means else None)
        term = ter(tokens.entropies, tokens.mask, tokens.measured, **options)
        assert entry["loss_term/ter"] == pytest.approx(term.item(), rel=1e-5)
        means.append((tokens.entropies * tokens.mask).sum().item() / tokens.mask.sum().item())


def test_disco_receives_whole_groups(tmp_path):
    seen = []
    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    trainer = trained(tmp_path, seen.append, policy_loss=FIRST["policy_loss"], **options)
    assert len(seen) == 8
    losses = []
    for tokens in seen:
        groups = tokens.response.view(-1, 4)
        assert torch.equal(groups, groups[:, :1] + torch.arange(4)) and (groups[:, 0] % 4 == 0).all()
        parts = (tokens.log_probs, tokens.old_log_probs, tokens.rewards.view(-1, 4), tokens.mask)
        losses.append(disco_loss(*parts, **FIRST["policy_loss"]["disco"]).item() / 2)
    wanted = [sum(losses[step : step + 2]) for step in range(0, 8, 2)]
    assert [entry["loss"] for entry in logged(trainer)] == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("target", "sign"), [(0.0, -1), (5.0, 1)])
def test_the_entropy_moves_towards_its_target(tmp_path, target, sign):
    """Measured on the same responses; the term outweighs the rewards."""
    term = {"ter": {"coef": 10.0, "target": target}}
    first, second = logged(trained(tmp_path, loss_term=term, max_steps=2, optim="sgd", learning_rate=0.02))
    assert sign * (second["entropy"] - first["entropy"]) > 0.02


@pytest.mark.parametrize(
    "without_effect",
    [{"token_advantage": {"entropy_shaped": {"alpha": 0.0}}}, {"loss_term": {"ter": {"coef": 0.0}}}],
    ids=str,
)
def test_a_coefficient_of_0_changes_no_bit(tmp_path, plain, without_effect):
    assert_same_parameters(parameters(trained(tmp_path, **without_effect)), parameters(plain))

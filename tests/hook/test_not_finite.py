"""Weights, log-probabilities or gradients that are not finite stop training; the error names step and tensor."""

import re

import pytest
import torch
from observe import on_generate, on_outputs
from toy import assert_same_parameters, logged, make_trainer, parameters
from transformers import TrainerCallback
from trl import GRPOConfig

from canon_trl import PluggableGRPOTrainer
from canon_trl.advantages import dr_grpo_advantage
from canon_trl.guards.finite import all_finite

STEP = 1  # optimiser steps before the fault


class At(TrainerCallback):
    """Applies an action to the trainer's model at the beginning of a step."""

    def __init__(self, action):
        self.action = action

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == STEP:
            self.action(model)


def spoil_a_weight(model):
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.up_proj").weight[3, 5] = torch.nan


def run_with(tmp_path, action, **options):
    trainer = make_trainer(tmp_path, **options)
    trainer.add_callback(At(action))
    return trainer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_among_many(dtype):
    device, weight = torch.device("cpu"), torch.randn(70, 33, dtype=dtype, requires_grad=True)
    finite = all_finite([weight, torch.empty(0), torch.tensor(1e30)], device)
    assert finite and not finite.requires_grad and all_finite([], device)
    for value in (torch.nan, torch.inf, -torch.inf):
        for place in (0, 1000, 2309):
            spoilt = weight.detach().clone()
            spoilt.view(-1)[place] = value
            assert not all_finite([weight, spoilt], device)


def test_a_bad_weight_is_found_before_a_rollout(tmp_path):
    trainer = run_with(tmp_path, spoil_a_weight)
    samplings = []
    on_generate(trainer, samplings.append)
    message = (
        "optimiser step 1: the rollout is not sampled. Not finite: parameter model.layers.1.mlp.up_proj.weight "
        "(1 of 49152 numbers) on rank 0"
    )
    with pytest.raises(FloatingPointError, match=re.escape(message)):
        trainer.train()
    assert len(samplings) == 1  # that of the first rollout


def test_a_bad_weight_is_found_in_the_loss(tmp_path):
    """A second update on the same rollout, which is not sampled again."""
    trainer = run_with(tmp_path, spoil_a_weight, num_iterations=2)
    message = (
        r"optimiser step 1: the loss is not finite\. Not finite: parameter model\.layers\.1\.mlp\.up_proj\.weight"
    )
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("old_per_token_logps", "the log-probabilities of the rollout (8 of 96 numbers)"),
        ("ref_per_token_logps", "the reference model's log-probabilities (8 of 96 numbers)"),
    ],
)
def test_bad_log_probabilities_of_a_rollout(tmp_path, name, said):
    trainer = make_trainer(tmp_path, num_iterations=2, beta=0.1)
    on_outputs(trainer, lambda output: output[name][:, 0].fill_(torch.nan))
    before = parameters(trainer)
    message = re.escape(f"optimiser step 0: the loss is not finite. Not finite: {said} on rank 0")
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()
    assert_same_parameters(parameters(trainer), before)


def test_bad_log_probabilities_of_the_policy(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.model.norm.register_forward_hook(  # in the loss, not in sampling
        lambda module, args, output: output * torch.nan if torch.is_grad_enabled() else output
    )
    with pytest.raises(FloatingPointError, match="Not finite: the policy's log-probabilities"):
        trainer.train()


def test_bad_gradients_are_found_before_they_change_a_weight(tmp_path):
    trainer = make_trainer(tmp_path, max_grad_norm=0.0)
    weight = trainer.model.get_submodule("model.layers.0.mlp.down_proj").weight
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([2]), torch.inf))
    before = parameters(trainer)
    message = "optimiser step 0: the norm of the gradients is inf. Not finite: the gradient of "
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()
    assert_same_parameters(parameters(trainer), before)


def with_loss(folder, loss_function, **options):
    estimator = {"advantage_estimator": lambda rollout: dr_grpo_advantage(rollout.rewards)}
    return make_trainer(
        folder,
        trainer_class=PluggableGRPOTrainer,
        config_class=GRPOConfig,
        trainer_options=estimator | {"policy_loss": loss_function},
        beta=0.1,
        **options,
    )


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_users_own_loss_that_is_not_finite(tmp_path, value):
    """Its gradient may be finite, so that the optimiser would step and the log would show 0."""

    def loss(log_probs, ref_log_probs, advantages, mask):
        return log_probs.masked_fill(~mask, 0.0).mean() + value

    trainer = with_loss(tmp_path, loss)
    before = parameters(trainer)
    with pytest.raises(FloatingPointError, match=r"optimiser step 0: the loss is not finite\. Not finite: no single"):
        trainer.train()
    assert_same_parameters(parameters(trainer), before)


def test_a_users_own_loss_is_logged(tmp_path):
    """TRL's loss, which is not differentiated, may be infinite, as its ratios to the rollout are here."""

    def loss(log_probs, ref_log_probs, advantages, mask):
        return 0 * log_probs.masked_fill(~mask, 0.0).sum() + 3.5

    trainer = with_loss(tmp_path, loss, gradient_accumulation_steps=2, num_iterations=2)
    on_outputs(trainer, lambda output: output["old_per_token_logps"][:, 0].fill_(-torch.inf))
    trainer.train()
    assert [entry["loss"] for entry in logged(trainer)] == [3.5] * 3

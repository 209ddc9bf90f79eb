"""A script written for GRPOTrainer: its options and its calls work with CANONTrainer."""

from dataclasses import MISSING, fields
from types import SimpleNamespace

import pytest
import torch
from toy import OPTIONS, config
from trl import GRPOConfig

from canon_trl import AStarPOConfig, AStarPOTrainer, CANONConfig, CANONTrainer, PluggableGRPOTrainer

SETTINGS = {
    "canon": (CANONConfig, {}),
    "opo": (CANONConfig, {"advantage_estimator": "opo"}),
    "clip_cov": (CANONConfig, {"policy_loss": "clip_cov"}),
    "kl_cov": (CANONConfig, {"policy_loss": "kl_cov", "num_iterations": 2}),
    "disco": (CANONConfig, {"policy_loss": "disco"}),
    "sapo": (CANONConfig, {"loss_type": "sapo"}),
    "vespo": (CANONConfig, {"loss_type": "vespo"}),
    "a loss term": (CANONConfig, {"loss_term": "ter"}),
    "a policy reward": (CANONConfig, {"policy_reward": "rent"}),
    "a controller": (CANONConfig, {"controller": "e3_temperature"}),
    "dynamic sampling": (CANONConfig, {"dynamic_sampling": True}),
    "recorded entropies": (CANONConfig, {"entropy_source": "generation"}),
    "A*-PO": (AStarPOConfig, {"num_generations": 1}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_option_with_trls_default_asks_for_nothing(setting):
    config_class, options = SETTINGS[setting]
    defaults = {option.name: option.default for option in fields(GRPOConfig) if option.init}
    given = {name: value for name, value in defaults.items() if value is not MISSING}
    made = config_class(**(given | OPTIONS | options | {"output_dir": "out"}))
    assert made.scale_rewards == "group" and made.epsilon_high is None


def test_options_of_the_sampler_in_generation_kwargs():
    made = config(generation_kwargs={"do_sample": True, "top_k": 50, "num_beams": 2})
    assert (made.top_k, made.generation_kwargs) == (50, {"do_sample": True, "num_beams": 2})


@pytest.mark.parametrize("given", ["batch", "group", "none", True, False])
def test_the_estimator_follows_trls_scaling_if_none_is_chosen(given, caplog):
    chosen = {"advantage_estimator": "grpo", "advantage_estimator_kwargs": {"eps": 0.1}}
    for options, otherwise in (({}, "canon"), (chosen, "grpo"), ({"advantage_estimator": "grpo_batch"}, "grpo_batch")):
        made = config(scale_rewards=given, **options)
        want = "grpo_batch" if given == "batch" else otherwise
        assert (made.advantage_estimator, made.make_estimator().name) == (want, want)
        assert made.advantage_estimator_kwargs == options.get("advantage_estimator_kwargs", {})
    warned = "options of TRL choose advantage_estimator='grpo_batch', not 'canon'" in caplog.text
    assert warned == (given == "batch")


@pytest.mark.parametrize("trainer_class", [CANONTrainer, AStarPOTrainer, PluggableGRPOTrainer])
def test_methods_work_on_a_trainer_that_was_never_initialised(trainer_class):
    """As in TRL's own tests, which set the attributes of a trainer by hand."""
    trainer = object.__new__(trainer_class)
    trainer.rollout_func = lambda prompts, trainer: {"prompt_ids": [[1]], "completion_ids": [[2]]}
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, num_processes=1)
    trainer.args, trainer.state = SimpleNamespace(report_to=[]), SimpleNamespace(global_step=0)
    trainer.model, trainer.use_vllm, trainer.tools = SimpleNamespace(training=True), False, None
    with pytest.raises(ValueError, match=r"rollout_func must return keys.*logprobs"):
        trainer._generate(["1+2="])

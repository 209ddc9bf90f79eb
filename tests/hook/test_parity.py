"""With TRL's estimators, training equals TRL's own bit for bit."""

import pytest
import torch
from observe import completions_table
from toy import assert_same_parameters, base_model, length_reward, logged, make_trainer, parameters
from trl import GRPOConfig, GRPOTrainer

from canon_trl.tasks import TASKS

TRL_OPTIONS = {"loss_type": "dr_grpo", "epsilon_high": 0.28}
BATCHES = [
    pytest.param({"per_device_train_batch_size": 4 * n, "gradient_accumulation_steps": 4 // n}, id=f"{n}x{4 // n}")
    for n in (1, 2)
]
REWARDS = {
    "one": {"reward_funcs": TASKS["arithmetic"].reward},
    "two": {"reward_funcs": [TASKS["arithmetic"].reward, length_reward]},
}
ESTIMATORS = {
    "grpo": ({"scale_rewards": "group"}, {"advantage_estimator_kwargs": {"eps": 1e-4}}),
    "dr_grpo": ({"scale_rewards": "none"}, {}),
}


CHOSEN = {
    "grpo_batch": {"scale_rewards": "batch"},
    "gdpo": {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "group"},
}


def some_unscored(completions, **kwargs):
    return [None if index % 5 < 2 else len(text) / 16 for index, text in enumerate(completions)]


def sometimes_alone(completions, answer, **kwargs):
    scores = TASKS["arithmetic"].reward(completions=completions, answer=answer, **kwargs)
    return [None if index % 5 == 1 else score for index, score in enumerate(scores)]


def train(folder, **options):
    """A trained trainer, and the advantages in its tables of completions, step by step."""
    trainer = make_trainer(folder, log_completions=True, **options)
    trainer.train()
    return trainer, [completions_table(trainer, step)["advantage"] for step in (1, 2, 3)]


@pytest.fixture(scope="module")
def train_trl(tmp_path_factory):
    """Train TRL's own trainer, once for each set of options."""
    runs = {}

    def run(**options):
        key = str(sorted(options.items()))
        if key not in runs:
            classes = {"trainer_class": GRPOTrainer, "config_class": GRPOConfig}
            runs[key] = train(tmp_path_factory.mktemp("trl"), **classes, **TRL_OPTIONS, **options)
        return runs[key]

    return run


def assert_same_training(ours, theirs, except_for=()):
    (our_trainer, our_advantages), (their_trainer, their_advantages) = ours, theirs
    assert any(any(advantages) for advantages in their_advantages)
    assert our_advantages == their_advantages
    for our_log, their_log in zip(logged(our_trainer), logged(their_trainer), strict=True):
        assert {name: value for name, value in their_log.items() if name not in except_for}.items() <= our_log.items()
    trained, initial = parameters(our_trainer), dict(base_model().named_parameters())
    assert_same_parameters(trained, parameters(their_trainer))
    assert any(not torch.equal(initial[name], value) for name, value in trained.items())


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("batch", BATCHES)
def test_trl_estimators(tmp_path, train_trl, estimator, batch, rewards):
    trl_options, our_options = ESTIMATORS[estimator]
    weights = {"reward_weights": [1.0, 0.3]} if rewards == "two" else {}
    shared = {"trainer_options": REWARDS[rewards], **batch, **weights}
    theirs = train_trl(**shared, **trl_options)
    ours = train(tmp_path, advantage_estimator=estimator, **shared, **TRL_OPTIONS, **our_options)
    assert_same_training(ours, theirs)


@pytest.mark.parametrize("estimator", CHOSEN)
def test_options_of_trl_choose_an_estimator(tmp_path, train_trl, estimator):
    """Equal also with responses that one or both reward functions did not score."""
    rewards = {"reward_funcs": [sometimes_alone, some_unscored]}
    options = {"trainer_options": rewards, "reward_weights": [1.0, -0.3], **CHOSEN[estimator]}
    ours = train(tmp_path, **TRL_OPTIONS, **options)
    assert ours[0].args.advantage_estimator == estimator
    assert_same_training(
        ours, train_trl(**options), except_for=["frac_reward_zero_std"]
    )  # TRL's is that of the whole batch


@pytest.mark.parametrize("options", [{"num_iterations": 2}, {"steps_per_generation": 2}], ids=lambda o: next(iter(o)))
def test_several_updates_per_rollout(tmp_path, train_trl, options):
    theirs = train_trl(scale_rewards="none", **options)
    ours = train(tmp_path, advantage_estimator="dr_grpo", **options)
    assert_same_training(ours, theirs)


@pytest.mark.parametrize("metric", ["entropy", "length", "random"])
@pytest.mark.parametrize("batch", BATCHES)
def test_canon_with_mu_one_half_is_dr_grpo(tmp_path, train_trl, metric, batch):
    # With 0/1 rewards and groups of four, every mean is a multiple of 1/4, so even rounding agrees.
    theirs = train_trl(trainer_options=REWARDS["one"], scale_rewards="none", **batch)
    ours = train(tmp_path, canon_metric=metric, canon_mu=0.5, **batch)
    assert_same_training(ours, theirs)


def test_canon_differs_from_dr_grpo(tmp_path):
    _, canon = train(tmp_path, canon_mu=1.0)
    _, dr_grpo = train(tmp_path, advantage_estimator="dr_grpo")
    assert canon[0] != dr_grpo[0]

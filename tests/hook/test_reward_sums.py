"""Rewards as weighted sums of functions: what counts as scored and as equal, and which weights apply."""

import json
import math

import pytest
import torch
from observe import completions_table, keep_rollouts
from toy import assert_same_parameters, logged, make_trainer, parameters
from transformers import TrainerCallback

from canon_trl.advantages import dr_grpo_advantage
from canon_trl.advantages.canon import canon_statistics
from canon_trl.rollout import weighted_reward
from canon_trl.sampling import group_verdicts

NAN = math.nan


def repeated(*rewards):
    """A reward function that gives these rewards to the responses of every group."""

    def function(completions, **kwargs):
        return [rewards[index % len(rewards)] for index in range(len(completions))]

    return function


def train(folder, *functions, **options):
    trainer = make_trainer(folder, trainer_options={"reward_funcs": list(functions)}, max_steps=1, **options)
    rollouts = keep_rollouts(trainer)
    trainer.train()
    return trainer, rollouts[0]


def test_a_function_without_weight_does_not_make_a_response_scored(tmp_path):
    accuracy, room_left = repeated(None, 1.0, 0.0, 1.0), repeated(0.1, 0.2, 0.3, 0.4)
    alone, rollout_alone = train(tmp_path, accuracy, advantage_estimator="dr_grpo")
    weighted, rollout = train(tmp_path, accuracy, room_left, advantage_estimator="dr_grpo", reward_weights=[1.0, 0.0])
    # r = (none, 1, 0, 1), mean 2/3
    expected = torch.tensor([[0.0, 1 / 3, -2 / 3, 1 / 3]] * 2)
    for seen in (rollout_alone, rollout):
        assert seen.valid.tolist() == [[False, True, True, True]] * 2
        torch.testing.assert_close(dr_grpo_advantage(seen.rewards), expected)
    assert_same_parameters(parameters(weighted), parameters(alone))
    # TRL's log: three of four responses are scored, their mean is 2/3, and each group has spread.
    entry, entry_alone = logged(weighted)[0], logged(alone)[0]
    assert entry["reward"] == pytest.approx(2 / 3)
    for name in ("reward", "reward_std", "frac_reward_zero_std", "advantage/relative_to_dr_grpo"):
        assert entry[name] == entry_alone[name]


def test_the_reward_sums_the_functions_that_scored():
    rewards = torch.tensor([[NAN, 0.5], [1.0, 0.5], [1.0, NAN], [NAN, NAN]])
    got = weighted_reward(rewards, torch.tensor([1.0, 0.2]))
    torch.testing.assert_close(got, torch.tensor([0.1, 1.1, 1.0, NAN]), equal_nan=True)


@pytest.mark.parametrize("weights", [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1] * 10, [1 / 3] * 3], ids=str)
def test_rounding_of_weights_does_not_make_a_right_answer_wrong(tmp_path, weights):
    """W-REINFORCE and A-GRAE accept {0, 1} or [0, 1], and must not receive 0.99999994 or 1.0000001."""
    functions = [repeated(1.0, 0.0, 0.0, 0.0) for _ in weights]
    for estimator in ("w_reinforce", "a_grae"):
        _, rollout = train(tmp_path, *functions, advantage_estimator=estimator, reward_weights=weights)
        assert rollout.rewards.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 2


def test_other_rewards_are_still_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"defined for rewards in \{0, 1\}, but .* is 0.9990000"):
        train(tmp_path, repeated(0.999, 0.0), advantage_estimator="w_reinforce")
    with pytest.raises(ValueError, match=r"defined for rewards in \[0, 1\], but .* is 1.0010000"):
        train(tmp_path, repeated(1.001, 0.0), advantage_estimator="a_grae")


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "canon"])
def test_equal_sums_of_different_parts_have_no_spread(tmp_path, estimator):
    # 0.1 + 0.2 and 0.3; 1 - 0.9 - 0.1 and 0
    parts = [repeated(0.1, 0.3, 0.1, 0.3), repeated(0.2, 0.0, 0.2, 0.0)]
    cancelling = [repeated(1.0, 0.0, 1.0, 0.0) for _ in range(3)]
    for functions, weights in ((parts, [1.0, 1.0]), (cancelling, [1.0, -0.9, -0.1])):
        options = {"advantage_estimator": estimator, "reward_weights": weights, "weight_decay": 0.0}
        before = parameters(make_trainer(tmp_path))
        trainer, rollout = train(tmp_path, *functions, **options)
        assert_same_parameters(parameters(trainer), before)
        assert logged(trainer)[0]["groups/frac_no_spread"] == 1.0
        spread, _ = group_verdicts(rollout.rewards, rollout.rewards)
        assert not spread.any()


def test_small_differences_count_as_spread():
    rewards = torch.tensor([[0.0, 1e-6], [1.0, 1.0 + 1e-5], [-1e-9, 0.0]])
    assert group_verdicts(rewards, rewards)[0].all()


def test_halves_with_the_same_mean_are_a_tie():
    # m(H) = (0.1 + 0.1 + 0.1) / 3 and m(L) = (0.1 + 0.1) / 2, which differ by rounding
    metric = torch.arange(5.0).unsqueeze(0)
    assert float(canon_statistics(torch.full((1, 5), 0.1), metric)["higher_wins"]) == 0.5


def test_a_mean_on_the_edge_of_the_band_is_inside():
    accuracy = torch.tensor([[0.1] * 7, [0.3, 0.0, 0.0, 0.0, 0.1, 0.1, 0.2]])  # means of 0.1
    for lower, upper in ((0.1, 1.0), (0.0, 0.1)):
        assert group_verdicts(accuracy, accuracy, lower=lower, upper=upper)[1].all()
    assert not group_verdicts(accuracy, accuracy, lower=0.101, upper=1.0)[1].any()


class Reweigh(TrainerCallback):
    def __init__(self, weights):
        self.weights = weights

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.reward_weights = torch.tensor(self.weights)


def test_dynamic_sampling_uses_the_current_weights(tmp_path):
    """From the second step on only the second function counts; it gives spread to half of the prompts."""

    def by_prompt(prompts, **kwargs):
        return [float(index % 2) if int(prompt[0]) % 2 else 0.0 for index, prompt in enumerate(prompts)]

    reweigh = Reweigh([0.0, 1.0])
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": [repeated(0.0, 1.0), by_prompt], "callbacks": [reweigh]},
        reward_weights=[1.0, 0.0],
        dynamic_sampling=True,
        per_device_train_batch_size=24,
        max_steps=3,
    )
    reweigh.trainer = trainer
    rollouts = keep_rollouts(trainer)
    trainer.train()
    assert [rollout.rewards.tolist() for rollout in rollouts] == [[[0.0, 1.0, 0.0, 1.0]] * 6] * 3
    assert [entry["groups/frac_no_spread"] for entry in logged(trainer)] == [0.0] * 3


def test_mu_follows_the_config_during_training(tmp_path):
    class Fade(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            args.canon_mu = 0.25

    trainer = make_trainer(tmp_path, trainer_options={"callbacks": [Fade()]}, canon_mu=0.75, max_steps=2)
    trainer.train()
    assert [entry["canon/mu"] for entry in logged(trainer)] == [0.75, 0.25]


def test_functions_with_the_same_name_are_logged_separately(tmp_path):
    def named(value):
        def judge(completions, **kwargs):
            return [value] * len(completions)

        return judge

    options = {"accuracy_reward": "judge_2", "canon_mu_schedule": "intra_to_inter", "log_completions": True}
    trainer, rollout = train(tmp_path, named(0.25), named(0.75), **options)
    entry = logged(trainer)[0]
    assert (entry["rewards/judge/mean"], entry["rewards/judge_2/mean"]) == (0.25, 0.75)
    assert rollout.reward_names == ("judge", "judge_2")
    assert entry["canon/mu"] == 0.75  # the accuracy of the second
    table = completions_table(trainer)
    assert (table["judge"], table["judge_2"]) == ([0.25] * 8, [0.75] * 8)


@pytest.mark.parametrize("dynamic_sampling", [False, True])
@pytest.mark.parametrize("count", [1, 5])
def test_extra_columns_of_the_wrong_length_are_left_out(tmp_path, dynamic_sampling, count):
    def judge(completions, log_extra, **kwargs):
        log_extra("verdict", ["fine"] * count)
        log_extra("place", list(range(len(completions))))
        return [float(index % 2) for index in range(len(completions))]

    with pytest.warns(UserWarning, match=rf"log_extra\('verdict', ...\) with {count} values for 8 completions"):
        trainer, _ = train(tmp_path, judge, dynamic_sampling=dynamic_sampling, log_completions=True)
    table = completions_table(trainer)
    assert "verdict" not in table
    assert table["place"] == list(range(8))
    json.dumps(logged(trainer))  # the step was completed and logged

"""What reaches the estimator, the loss, the log and the completions table."""

import math

import pytest
import torch
from observe import completions_table, keep_outputs, keep_rollouts, keep_tokens
from toy import (
    ONE_ROLLOUT,
    TASK,
    assert_same_parameters,
    length_reward,
    logged,
    make_trainer,
    parameters,
    prompts,
    rollout_with_tool,
)

from canon_trl.advantages import canon_advantage, dr_grpo_advantage, split_by_metric
from canon_trl.metrics import random_metric


def test_canon_advantages_reach_the_loss(tmp_path):
    """Each exactly once, in whatever order TRL shuffles them."""
    trainer = make_trainer(tmp_path, canon_mu=0.7, canon_alpha=0.9, gradient_accumulation_steps=2, max_steps=1)
    rollouts, micro_batches = keep_rollouts(trainer), keep_tokens(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    rollout = rollouts[0]
    assert rollout.rewards.shape == (4, 4)
    want = canon_advantage(rollout.rewards, rollout.metrics["entropy"], mu=0.7, alpha=0.9, alpha_group="lower")
    assert torch.cat([tokens.response for tokens in micro_batches]).sort().values.tolist() == list(range(16))
    for tokens in micro_batches:
        mask = outputs[0]["completion_mask"][tokens.response].bool()
        assert torch.equal(tokens.mask, mask[:, : tokens.mask.shape[1]])
        assert torch.equal(tokens.advantages, want.flatten()[tokens.response].unsqueeze(1) * tokens.mask)


def test_log_and_completions_table(tmp_path):
    trainer = make_trainer(tmp_path, canon_metric="length", canon_mu=0.7, max_steps=1, log_completions=True)
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    rollout, entry = rollouts[0], logged(trainer)[0]
    rewards, metric = rollout.rewards, rollout.metrics["length"]
    want = canon_advantage(rewards, metric, mu=0.7)
    higher = split_by_metric(metric)
    high, low = [(rewards * half).sum(1) / half.sum(1) for half in (higher, ~higher)]
    assert entry["canon/mu"] == pytest.approx(0.7)
    assert entry["canon/reward_gap"] == pytest.approx((high - low).mean().item(), abs=1e-6)
    wins = ((high > low).float() + 0.5 * (high == low).float()).mean().item()
    assert entry["canon/higher_wins"] == pytest.approx(wins)
    assert entry["canon/metric_higher"] == pytest.approx(metric[higher].mean().item(), rel=1e-6)
    assert entry["canon/metric_lower"] == pytest.approx(metric[~higher].mean().item(), rel=1e-6)
    assert entry["metric/length/mean"] == pytest.approx(metric.mean().item(), rel=1e-6)
    relative = want.abs().sum() / dr_grpo_advantage(rewards).abs().sum()
    assert entry["advantage/relative_to_dr_grpo"] == pytest.approx(relative.item(), rel=1e-6)
    no_spread = (rewards.max(1).values == rewards.min(1).values).float().mean().item()
    assert entry["groups/frac_no_spread"] == pytest.approx(no_spread)

    table = completions_table(trainer)
    assert table["advantage"] == want.flatten().tolist() == outputs[0]["advantages"].tolist()
    assert table["metric/length"] == metric.flatten().tolist()
    assert table["higher_half"] == higher.flatten().tolist()
    assert table["accuracy"] == rewards.flatten().tolist()


def test_entropies_of_right_and_wrong_responses_are_logged(tmp_path):
    """Of the reward that measures accuracy, and only if the rollout carries entropies."""
    given = {"reward_funcs": [length_reward, TASK.reward]}
    trainer = make_trainer(tmp_path, max_steps=1, accuracy_reward="accuracy", trainer_options=given)
    rollouts = keep_rollouts(trainer)
    trainer.train()
    (rollout,), entry = rollouts, logged(trainer)[0]
    nats = rollout.metrics["entropy"] * rollout.lengths
    for name, chosen in {"right": 1, "wrong": 0}.items():
        those = rollout.rewards_per_func[..., 1] == chosen
        assert entry[f"entropy/{name}"] == pytest.approx((nats[those].sum() / rollout.lengths[those].sum()).item())
    without = [{"canon_metric": "length"}, {"advantage_estimator": "grpo"}]
    without.append({"policy_reward": "rent", "advantage_estimator": "grpo", "trainer_options": {"reward_funcs": None}})
    for number, options in enumerate(without):
        trainer = make_trainer(tmp_path / str(number), max_steps=1, **options)
        trainer.train()
        assert not {"entropy/right", "entropy/wrong"} & logged(trainer)[0].keys()


def test_a_small_evaluation_has_its_own_completions_table(tmp_path):
    """The table has room for a larger rollout, so that TRL's advantages would stay in it."""
    trainer = make_trainer(
        tmp_path,
        trainer_options={"eval_dataset": TASK.dataset("test", 1, seed=0), "reward_funcs": length_reward},
        per_device_eval_batch_size=4,
        log_completions=True,
    )
    outputs = keep_outputs(trainer)
    trainer.evaluate()
    advantages = outputs[0]["advantages"].tolist()
    assert len(advantages) == 4 and any(advantages)
    assert completions_table(trainer)["advantage"] == advantages


def some_unscored(completions, **kwargs):
    return [None if index % 4 == 1 else float(len(text) % 2) for index, text in enumerate(completions)]


def never_scored(completions, **kwargs):
    return [None] * len(completions)


def test_unscored_responses(tmp_path):
    trainer = make_trainer(tmp_path, trainer_options={"reward_funcs": some_unscored}, max_steps=1)
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    rollout = rollouts[0]
    assert rollout.valid.tolist() == [[True, False, True, True]] * 2
    assert rollout.rewards[:, 1].isnan().all()
    assert (outputs[0]["advantages"].view(2, 4)[:, 1] == 0).all()
    want = canon_advantage(rollout.rewards, rollout.metrics["entropy"], alpha_group="lower")
    assert torch.equal(outputs[0]["advantages"], want.flatten())


def test_unscored_responses_count_in_no_statistic(tmp_path):
    """By hand: groups of lengths 3, 6, 4, 5; the second reward of the first is missing, and all of the third."""

    def scored(completions, **kwargs):
        return [1.0, None, 0.0, 1.0, *[0.75] * 4, *[None] * 4]

    def of_lengths(prompts, trainer):
        ids = trainer.processing_class(["1" * length for length in (3, 6, 4, 5)] * 3)["input_ids"]
        prompt_ids = trainer.processing_class(prompts)["input_ids"]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[-1.0] * len(row) for row in ids]}

    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": scored, "rollout_func": of_lengths},
        canon_metric="length",
        per_device_train_batch_size=12,
        log_completions=True,
        max_steps=1,
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    entry = logged(trainer)[0]
    assert entry["groups/frac_no_spread"] == 0.5
    assert float(rollouts[0].accuracy) == pytest.approx((2 + 3) / 7, rel=1e-6)
    assert completions_table(trainer)["higher_half"][:4] == [False, False, True, True]
    # lengths 3 | 4, 5 and 3, 4 | 5, 6; rewards 1 | 0, 1 and 0.75 twice
    assert entry["canon/reward_gap"] == pytest.approx((-0.5 + 0) / 2)
    assert entry["canon/metric_lower"] == pytest.approx((3 + 3 + 4) / 3, rel=1e-6)
    assert entry["canon/metric_higher"] == pytest.approx((4 + 5 + 5 + 6) / 4, rel=1e-6)


@pytest.mark.parametrize(("scale", "accuracy"), [(6, 1.0), (-6, 0.0)])
def test_an_unused_accuracy_is_clipped(tmp_path, scale, accuracy):
    def beyond(completions, **kwargs):
        return [float(scale * (index % 2)) for index, _ in enumerate(completions)]

    trainer = make_trainer(tmp_path, trainer_options={"reward_funcs": beyond}, max_steps=1)
    rollouts = keep_rollouts(trainer)
    trainer.train()
    assert float(rollouts[0].accuracy) == accuracy


@pytest.mark.parametrize("token_level", [False, True])
def test_unscored_responses_have_no_advantage_whatever_the_estimator_returns(tmp_path, token_level):
    def ones(rollout):
        return torch.ones(*rollout.rewards.shape, *([rollout.width] if token_level else []))

    options = {"reward_funcs": some_unscored, "advantage_estimator": ones}
    trainer = make_trainer(tmp_path, trainer_options=options, max_steps=1)
    outputs = keep_outputs(trainer)
    trainer.train()
    got = outputs[0]["advantages"].view(2, 4, -1)
    assert (got[:, 1] == 0).all() and (got[:, [0, 2, 3]] == 1).all()


def test_without_any_score_nothing_is_learnt(tmp_path):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": never_scored},
        canon_mu_schedule="inter_to_intra",
        max_steps=1,
        weight_decay=0.0,
    )
    before = parameters(trainer)
    trainer.train()
    entry = logged(trainer)[0]
    assert entry["loss"] == 0.0
    assert entry["canon/mu"] == 1.0  # accuracy counts as 0
    assert entry["canon/reward_gap"] is None
    assert all(torch.equal(before[name], value) for name, value in parameters(trainer).items())


@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("estimator", ["canon", "dr_grpo", "grpo", "rloo"])
def test_equal_rewards_do_not_move_the_model(tmp_path, size, estimator):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": lambda completions, **kwargs: [0.1] * len(completions)},
        advantage_estimator=estimator,
        num_generations=size,
        per_device_train_batch_size=2 * size,
        max_steps=1,
    )
    before = parameters(trainer)
    trainer.train()
    entry = logged(trainer)[0]
    assert entry["groups/frac_no_spread"] == 1.0
    assert entry["advantage/relative_to_dr_grpo"] is None
    assert all(torch.equal(before[name], value) for name, value in parameters(trainer).items())


def test_several_rewards_with_weights_and_a_named_accuracy(tmp_path):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": [length_reward, TASK.reward]},
        reward_weights=[0.25, 2.0],
        accuracy_reward="accuracy",
        canon_mu_schedule="intra_to_inter",
        max_steps=1,
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    rollout = rollouts[0]
    assert rollout.reward_names == ("length_reward", "accuracy")
    lengths, correct = rollout.rewards_per_func.unbind(-1)
    assert lengths.unique().numel() > 1 and correct.unique().numel() == 2, "the case needs both rewards"
    torch.testing.assert_close(rollout.rewards, 0.25 * lengths + 2.0 * correct)
    assert float(rollout.accuracy) == correct.mean().item()
    assert logged(trainer)[0]["canon/mu"] == pytest.approx(correct.mean().item())


def test_async_rewards(tmp_path):
    async def slow_accuracy(completions, answer, **kwargs):
        return TASK.reward(completions, answer)

    trainer = make_trainer(tmp_path, trainer_options={"reward_funcs": slow_accuracy}, max_steps=1)
    rollouts = keep_rollouts(trainer)
    trainer.train()
    assert rollouts[0].reward_names == ("slow_accuracy",)
    assert set(rollouts[0].rewards.flatten().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("generations", [1, 2])
def test_evaluation_with_another_number_of_generations(tmp_path, generations):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"eval_dataset": TASK.dataset("test", 8, seed=0)},
        num_generations_eval=generations,
        canon_mu_schedule="cosine_inter_to_intra",
        max_steps=-1,
        num_train_epochs=1,
    )
    rollouts = keep_rollouts(trainer)
    scores = trainer.evaluate()
    assert rollouts[0].rewards.shape == (8 // generations, generations)
    assert rollouts[0].total_steps == 32  # 64 prompts, 2 per rollout
    assert scores["eval_reward"] == pytest.approx(
        sum(rollout.rewards.mean().item() for rollout in rollouts) / len(rollouts), rel=1e-6
    )
    if generations == 1:
        assert scores["eval_loss"] == 0.0
        assert scores["eval_canon/reward_gap"] is None


def test_odd_groups(tmp_path):
    trainer = make_trainer(tmp_path, num_generations=5, per_device_train_batch_size=10, canon_mu=0.5, max_steps=1)
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    higher = split_by_metric(rollouts[0].metrics["entropy"])
    assert higher.sum(dim=1).tolist() == [3, 3]
    want = canon_advantage(rollouts[0].rewards, rollouts[0].metrics["entropy"], mu=0.5)
    assert torch.equal(outputs[0]["advantages"], want.flatten())


def test_random_metric_is_a_function_of_seed_and_rollout(tmp_path):
    trainer = make_trainer(tmp_path, canon_metric="random", max_steps=2, seed=7, data_seed=7)
    rollouts = keep_rollouts(trainer)
    trainer.train()
    for step, rollout in enumerate(rollouts):
        assert torch.equal(rollout.metrics["random"], random_metric((2, 4), seed=7, step=step))
    assert not torch.equal(rollouts[0].metrics["random"], rollouts[1].metrics["random"])


@pytest.mark.parametrize(
    ("options", "steps", "total"),
    [
        pytest.param({"max_steps": 3}, [0, 1, 2], 3, id="one update per rollout"),
        pytest.param({"max_steps": 4, "num_iterations": 2}, [0, 1], 2, id="two updates per rollout"),
        pytest.param({"max_steps": 5, "steps_per_generation": 2}, [0, 1, 2], 3, id="two halves of a rollout"),
        pytest.param(
            {"max_steps": 2, "steps_per_generation": 1, "gradient_accumulation_steps": 2},
            [0, 1, 2, 3],
            4,
            id="two rollouts per update",
        ),
        pytest.param(
            {"max_steps": 3, "steps_per_generation": 3, "gradient_accumulation_steps": 2},
            [0, 1],
            2,
            id="a rollout ends within an update",
        ),
    ],
)
def test_rollouts_are_numbered(tmp_path, options, steps, total):
    trainer = make_trainer(tmp_path, **options)
    rollouts = keep_rollouts(trainer)
    trainer.train()
    assert [rollout.step for rollout in rollouts] == steps
    assert {rollout.total_steps for rollout in rollouts} == {total}


def test_token_level_estimator(tmp_path):
    def last_half(rollout):
        positions = torch.arange(rollout.width)
        return dr_grpo_advantage(rollout.rewards).unsqueeze(-1) * (positions >= rollout.lengths.unsqueeze(-1) // 2)

    options = {"advantage_estimator": last_half}
    trainer = make_trainer(tmp_path, trainer_options=options, max_steps=1, log_completions=True)
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    lengths = rollouts[0].lengths.flatten()
    want = dr_grpo_advantage(rollouts[0].rewards).flatten()
    got = outputs[0]["advantages"]
    assert got.shape == outputs[0]["completion_ids"].shape
    for row in range(8):
        half = lengths[row] // 2
        assert (got[row, :half] == 0).all()
        assert (got[row, half : lengths[row]] == want[row]).all()
    mean = [want[row].item() * (1 - (length // 2) / length) for row, length in enumerate(lengths.tolist())]
    assert completions_table(trainer)["advantage"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("left", [math.nan, math.inf])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_iterations": 2}, {"policy_loss": "clip_cov", "policy_loss_kwargs": {"scope": "batch"}}],
    ids=str,
)
def test_advantages_on_padding_are_never_read(tmp_path, left, options):
    """An estimator may leave any value there; loss, log and weights are the same as with zeros."""
    runs = []
    for filling in (0.0, left):

        def filled(rollout, *, filling=filling):
            padding = torch.arange(rollout.width) >= rollout.lengths.unsqueeze(-1)
            assert padding.any()
            return dr_grpo_advantage(rollout.rewards).unsqueeze(-1).masked_fill(padding, filling)

        given = {"advantage_estimator": filled}
        trainer = make_trainer(tmp_path, trainer_options=given, max_steps=2, log_completions=True, **options)
        torch.manual_seed(5)
        trainer.train()
        table = completions_table(trainer)["advantage"]
        runs.append((logged(trainer), table, parameters(trainer)))
    assert runs[0][:2] == runs[1][:2]
    assert_same_parameters(runs[0][2], runs[1][2])


def test_tool_tokens_need_no_advantage(tmp_path):
    """The tool's token is the second to last of each response; its advantage is not read."""

    def none_for_the_tool(rollout):
        advantages = torch.ones(*rollout.rewards.shape, rollout.width)
        tool = (rollout.lengths - 1).unsqueeze(-1)  # one token of the model follows it
        return advantages.scatter(2, tool, math.nan)

    trainer = make_trainer(
        tmp_path,
        trainer_options={"advantage_estimator": none_for_the_tool, "rollout_func": rollout_with_tool},
        log_completions=True,
        **ONE_ROLLOUT,
    )
    trainer.train()
    assert completions_table(trainer)["advantage"] == [1.0] * 8
    assert math.isfinite(logged(trainer)[0]["loss"])


def test_a_model_token_without_an_advantage_is_an_error(tmp_path):
    def hole(rollout):
        advantages = torch.ones(*rollout.rewards.shape, rollout.width)
        advantages[1, 2, 0] = math.nan
        return advantages

    trainer = make_trainer(tmp_path, trainer_options={"advantage_estimator": hole}, max_steps=1)
    with pytest.raises(ValueError, match="returned nan for completion 6; advantages must be finite"):
        trainer.train()


def best_only(rollout, *, bonus=1.0):
    best = rollout.rewards == rollout.rewards.amax(dim=1, keepdim=True)
    return bonus * (best.float() - best.float().mean(dim=1, keepdim=True))


def test_a_users_own_estimator_by_import_path_with_options(tmp_path):
    path = f"{__name__}:best_only"
    trainer = make_trainer(tmp_path, advantage_estimator=path, advantage_estimator_kwargs={"bonus": 3.0}, max_steps=1)
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    assert torch.equal(outputs[0]["advantages"], best_only(rollouts[0], bonus=3.0).flatten())


def test_prompts_may_repeat_within_a_batch(tmp_path):
    """Groups are formed by position, so equal prompts stay separate groups."""
    twice = prompts(1)
    trainer = make_trainer(
        tmp_path,
        trainer_options={"train_dataset": twice.select([0] * 8)},
        max_steps=1,
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    assert rollouts[0].rewards.shape == (2, 4)


def test_nan_reward_counts_as_unscored(tmp_path):
    def sometimes_nan(completions, **kwargs):
        return [float("nan") if index % 4 == 1 else float(len(text) % 2) for index, text in enumerate(completions)]

    seen = {}
    for reward in (sometimes_nan, some_unscored):
        trainer = make_trainer(tmp_path, trainer_options={"reward_funcs": reward}, max_steps=1)
        outputs = keep_outputs(trainer)
        trainer.train()
        seen[reward] = outputs[0]["advantages"]
    assert torch.equal(seen[sometimes_nan], seen[some_unscored])
    assert seen[some_unscored].abs().max() > 0


def test_token_level_advantages_are_averaged_over_the_models_tokens(tmp_path):
    """A tool's token is part of the response, but the mean is over the model's tokens only."""

    def position(rollout):
        return torch.arange(1.0, rollout.width + 1).expand(*rollout.rewards.shape, -1)

    trainer = make_trainer(
        tmp_path,
        trainer_options={"advantage_estimator": position, "rollout_func": rollout_with_tool},
        log_completions=True,
        **ONE_ROLLOUT,
    )
    trainer.train()
    # the model's tokens are at 1..k and k + 2, the tool's at k + 1
    want = [(sum(range(1, k + 1)) + k + 2) / (k + 1) for k in (1 + row % 3 for row in range(8))]
    assert completions_table(trainer)["advantage"] == pytest.approx(want, rel=1e-6)


def test_a_response_without_model_tokens_has_the_advantage_0(tmp_path):
    """A tool wrote every token, so there is nothing to average over."""

    def by_the_tool_alone(prompts, trainer):
        written = rollout_with_tool(prompts, trainer)
        written["env_mask"][0] = [0] * len(written["env_mask"][0])
        return written

    def ones(rollout):
        return torch.ones(*rollout.rewards.shape, rollout.width)

    trainer = make_trainer(
        tmp_path,
        trainer_options={"advantage_estimator": ones, "rollout_func": by_the_tool_alone},
        log_completions=True,
        **ONE_ROLLOUT,
    )
    trainer.train()
    assert completions_table(trainer)["advantage"] == [0.0] + [1.0] * 7

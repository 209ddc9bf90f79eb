"""Dynamic sampling replaces groups that teach nothing and changes nothing else."""

import math

import pytest
import torch
from datasets import Dataset
from observe import completions_table, count_forwards, keep_outputs, keep_rollouts, scored_entropy
from teaching import MIXED, fixed_responses, graded, teaches
from toy import (
    TASK,
    assert_resumes,
    assert_same_parameters,
    logged,
    make_trainer,
    parameters,
    prompts,
)

from canon_trl.sampling import DynamicSampling, group_verdicts

NAN = float("nan")


def test_verdicts():
    rewards = torch.tensor([[1.0, 0.0, 1.0], [0.1, 0.1, 0.1], [NAN, 1.0, 0.0], [NAN, NAN, 1.0], [NAN, NAN, NAN]])
    spread, in_band = group_verdicts(rewards, rewards, lower=0.2, upper=0.6)
    assert spread.tolist() == [True, False, True, False, False]
    assert in_band.tolist() == [False, False, True, False, False]  # means 2/3, 0.1, 1/2, 1, none
    # without a band only the spread decides, whatever measures accuracy
    for accuracy in (rewards, torch.full_like(rewards, NAN), rewards - 3):
        assert group_verdicts(rewards, accuracy)[1].all()


def always_spread(completions, **kwargs):
    return [float(index % 2) for index, _ in enumerate(completions)]


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2}, {"canon_metric": "surprisal"}], ids=str)
def test_nothing_changes_when_every_group_is_kept(tmp_path, options):
    trainer_options = {"reward_funcs": always_spread}
    plain = make_trainer(tmp_path, trainer_options=trainer_options, **options)
    plain.train()
    sampled = make_trainer(tmp_path, trainer_options=trainer_options, dynamic_sampling=True, **options)
    sampled.train()
    assert_same_parameters(parameters(sampled), parameters(plain))
    for got, want in zip(logged(sampled), logged(plain), strict=True):
        assert {key: got[key] for key in want} == want
        assert got.get("dynamic_sampling/rounds", 1) == 1


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2}, {"entropy_source": "forward"}], ids=str)
def test_groups_without_spread_are_replaced(tmp_path, options):
    drawn = []

    def counting(prompts, completions, log_extra, **kwargs):
        drawn.extend(prompts[::4])
        return graded(prompts, completions, log_extra)

    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": counting},
        dynamic_sampling=True,
        per_device_train_batch_size=24,
        log_completions=True,
        learning_rate=0.0,
        max_steps=1,
        **options,
    )
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    calls = count_forwards(trainer)
    trainer.train()
    rollout, output = rollouts[0], outputs[0]
    assert rollout.rewards.tolist() == [[0.0, 1.0, 0.0, 1.0]] * 6
    texts = trainer.processing_class.batch_decode(output["prompt_ids"], skip_special_tokens=True)
    assert all(teaches(text) for text in texts)
    assert [texts[first : first + 4] for first in range(0, 24, 4)] == [[text] * 4 for text in texts[::4]]
    # What is recorded, scored or logged belongs to the kept responses.
    entropy, _ = scored_entropy(trainer, output)
    torch.testing.assert_close(rollout.metrics["entropy"].flatten(), entropy, atol=2e-5, rtol=0)
    completions = trainer.processing_class.batch_decode(output["completion_ids"], skip_special_tokens=True)
    table = completions_table(trainer)
    assert table["shown"] == [f"{prompt}|{text}" for prompt, text in zip(texts, completions, strict=True)]
    assert table["prompt"] == texts
    # No pass scores rejected responses.
    assert calls["without_grad"] == (1 if options else 0)
    counts = sampling_counts(trainer)
    assert counts["rounds"] >= 2
    assert counts["prompts_kept"] == 6
    assert counts["prompts_drawn"] == len(drawn)
    assert counts["prompts_drawn"] == sum(
        counts[f"prompts_{what}"] for what in ("kept", "surplus", "no_spread", "outside_band")
    )
    assert counts["prompts_no_spread"] > 0 == counts["prompts_outside_band"]


def sampling_counts(trainer, step=0):
    """What dynamic sampling logged at a step, by name."""
    found = logged(trainer)[step].items()
    return {name.removeprefix("dynamic_sampling/"): value for name, value in found if name.startswith("dynamic_")}


def test_band_of_accuracy(tmp_path):
    def by_prompt(prompts, **kwargs):
        """A quarter right where the first digit is even, three quarters where it is odd."""
        return [float(index % 4 < (1 if teaches(prompt) else 3)) for index, prompt in enumerate(prompts)]

    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": by_prompt},
        dynamic_sampling=True,
        dynamic_sampling_kwargs={"lower": 0.5, "upper": 0.9},
        max_steps=2,
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    assert [rollout.rewards.mean(dim=1).tolist() for rollout in rollouts] == [[0.75, 0.75]] * 2
    assert sum(entry["dynamic_sampling/prompts_outside_band"] for entry in logged(trainer)) > 0


def test_a_band_of_a_named_reward_with_gaps(tmp_path):
    """The trained reward lies outside [0, 1]; the band includes its ends, and None does not count."""

    def points(completions, **kwargs):
        return [10.0 * (index % 3) for index, _ in enumerate(completions)]

    def share(prompts, **kwargs):
        return [
            ([None, 1.0, 0.0, 0.5] if teaches(prompt) else [None, 1.0, 1.0, 0.0])[index % 4]
            for index, prompt in enumerate(prompts)
        ]

    for band in ({"lower": 0.2, "upper": 0.5}, {"lower": 0.5, "upper": 0.6}):
        trainer = make_trainer(
            tmp_path,
            trainer_options={"reward_funcs": [points, share]},
            reward_weights=[1.0, 0.0],
            accuracy_reward="share",
            dynamic_sampling=True,
            dynamic_sampling_kwargs=band,
            per_device_train_batch_size=24,
            max_steps=1,
        )
        rollouts = keep_rollouts(trainer)
        trainer.train()
        assert rollouts[0].rewards_per_func[:, :, 1].nanmean(dim=1).tolist() == [0.5] * 6
        assert logged(trainer)[0]["dynamic_sampling/prompts_outside_band"] > 0


def test_a_band_needs_an_accuracy(tmp_path):
    trainer = make_trainer(
        tmp_path,
        trainer_options={
            "reward_funcs": lambda completions, **kwargs: [float(i % 3 - 1) for i in range(len(completions))]
        },
        dynamic_sampling=True,
        dynamic_sampling_kwargs={"lower": 0.1},
    )
    with pytest.raises(ValueError, match=r"but the accuracy reward gave \[-1.0, 0.0, 1.0, -1.0\] for"):
        trainer.train()


@pytest.mark.parametrize("max_rounds", [1, 10])
def test_schedules_read_the_accuracy_of_all_drawn_groups(tmp_path, max_rounds):
    """Fully solved groups are replaced but count; three prompts in four have them."""

    def mostly_solved(prompts, **kwargs):
        solved = [prompt[0] in "1234567" for prompt in prompts]
        return [1.0 if whole else float(index % 2) for index, whole in enumerate(solved)]

    rows = Dataset.from_dict({"prompt": ["1+1=", "2+1=", "8+1=", "3+1="] * 8})
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": mostly_solved, "train_dataset": rows},
        canon_mu_schedule="inter_to_intra",
        dynamic_sampling=True,
        dynamic_sampling_kwargs={"max_rounds": max_rounds},
        per_device_train_batch_size=16,
        shuffle_dataset=False,
        max_steps=2,
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    # Of 4 prompts, 3 are fully solved and 1 by half: (3 * 1 + 0.5) / 4 = 0.875, and the same in further rounds.
    assert [float(rollout.accuracy) for rollout in rollouts] == [0.875, 0.875]
    assert [entry["canon/mu"] for entry in logged(trainer)] == [0.125, 0.125]
    assert [entry["dynamic_sampling/accuracy_drawn"] for entry in logged(trainer)] == [0.875, 0.875]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run that samples several rounds, and the columns that its reward function received in each.

    Its first reward function logs an extra column in the first round only. The second separates solved prompts from
    the others and gives the same reward to every response that is kept.
    """
    columns = []

    def judge(prompts, log_extra, **received):
        columns.append(sorted(received.keys() - {"completions", "completion_ids", "log_metric", "trainer_state"}))
        if len(columns) == 1:
            log_extra("first round", list(range(len(prompts))))
        return graded(prompts, prompts, lambda *args: None)

    def solved(prompts, **received):
        return [float(not teaches(prompt)) for prompt in prompts]

    trainer = make_trainer(
        tmp_path_factory.mktemp("watched"),
        trainer_options={"reward_funcs": [judge, solved]},
        reward_weights=[1.0, 0.0],
        dynamic_sampling=True,
        per_device_train_batch_size=24,
        remove_unused_columns=False,
        log_completions=True,
        max_steps=2,
    )
    trainer.train()
    assert len(columns) > 2, "the case needs a second round"
    return trainer, columns


def test_the_completions_table_has_gaps_where_a_round_logs_no_column(watched):
    column = completions_table(watched[0], step=1)["first round"]
    kept = [value for value in column if not math.isnan(value)]
    assert len(column) == 24
    assert kept == sorted(kept) and 0 < len(kept) < 24


def test_replaced_groups_count_towards_constant_rewards(watched):
    for entry in logged(watched[0]):
        assert entry["rewards/solved/mean"] == 0.0
        assert entry["rewards/solved/constant_rollouts"] == 0.0


def test_fresh_prompts_have_the_columns_of_the_others(watched, tmp_path):
    _, columns = watched
    assert all(received == ["answer"] for received in columns)

    def judge(prompts, **received):
        assert "answer" not in received
        rounds.append(prompts)
        return graded(prompts, prompts, lambda *args: None)

    rounds = []
    options = {"dynamic_sampling": True, "per_device_train_batch_size": 24, "remove_unused_columns": True}
    make_trainer(tmp_path, trainer_options={"reward_funcs": judge}, max_steps=1, **options).train()
    assert len(rounds) > 1


def test_the_callers_list_of_reward_functions_is_not_changed(tmp_path):
    functions = [always_spread]
    make_trainer(tmp_path, trainer_options={"reward_funcs": functions})
    assert functions == [always_spread]


def test_keep_and_error(tmp_path):
    options = {"dynamic_sampling": True, "per_device_train_batch_size": 24, "max_steps": 1}
    keep = options | {"dynamic_sampling_kwargs": {"max_rounds": 1, "exhausted": "keep"}}
    trainer = make_trainer(tmp_path, trainer_options={"reward_funcs": graded}, **keep)
    rollouts = keep_rollouts(trainer)
    trainer.train()
    means = rollouts[0].rewards.mean(dim=1)
    kept = int((means == 0.5).sum())
    assert 0 < kept < 6
    torch.testing.assert_close(means, torch.tensor([0.5] * kept + [0.1] * (6 - kept)))
    error = options | {"dynamic_sampling_kwargs": {"max_rounds": 1, "exhausted": "error"}}
    trainer = make_trainer(tmp_path, trainer_options={"reward_funcs": graded}, **error)
    with pytest.raises(RuntimeError, match=rf"{kept} of 6 groups are usable. Use prompts whose rewards differ"):
        trainer.train()


def test_counts_of_a_partial_batch(tmp_path):
    """One round gives two groups with spread, fewer than the batch takes."""
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": graded, "train_dataset": MIXED},
        dynamic_sampling=True,
        dynamic_sampling_kwargs={"max_rounds": 1},
        per_device_train_batch_size=16,
        max_steps=1,
    )
    trainer.train()
    counts = sampling_counts(trainer)
    assert counts.pop("accuracy_drawn") == pytest.approx((2 * 0.5 + 2 * 0.1) / 4)
    assert counts == {
        "rounds": 1,
        "prompts_drawn": 4,
        "prompts_kept": 2,
        "prompts_surplus": 0,
        "prompts_no_spread": 2,
        "prompts_outside_band": 0,
    }


def by_round(rounds, size=4):
    """A reward function that gives spread to the marked groups, round by round; groups differ in their rewards."""
    calls = iter(rounds)

    def reward(prompts, **kwargs):
        marks = next(calls)
        assert len(marks) * size == len(prompts)
        return [
            None if place == 3 and not mark else (1 if mark and place == 0 else 0.5) * (1 - (group + len(marks)) / 256)
            for group, mark in enumerate(marks)
            for place in range(size)
        ]

    return reward


def top_rewards(rounds):
    """The largest reward of each group, round by round."""
    return [
        [(1 if mark else 0.5) * (1 - (group + len(marks)) / 256) for group, mark in enumerate(marks)]
        for marks in rounds
    ]


def test_three_rounds_by_hand(tmp_path):
    """Each round samples as many prompts as the share kept so far suggests; training takes the first ones kept."""
    # 5 of 8 are kept, so ceil(3 / (5 / 8)) = 5 more are sampled; none of these is, so ceil(3 / (5 / 13)) = 8 more are
    rounds = [[1, 0, 1, 1, 0, 1, 0, 1], [0] * 5, [0, 1, 1, 0, 1, 1, 1, 1]]
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": by_round(rounds)},
        dynamic_sampling=True,
        per_device_train_batch_size=32,
        max_steps=1,
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    top = top_rewards(rounds)
    assert rollouts[0].rewards.amax(dim=1).tolist() == [*(top[0][i] for i in (0, 2, 3, 5, 7)), *top[2][1:3], top[2][4]]
    # In units of the factor that differs by group: 1, 1/2, 1/2, 1/2 where marked, else three times 1/2 and None,
    # and `top` has the largest of each group.
    scored = sum(4 if mark else 3 for marks in rounds for mark in marks)
    total = sum(
        largest * (2.5 if mark else 3)
        for marks, largests in zip(rounds, top, strict=True)
        for mark, largest in zip(marks, largests, strict=True)
    )
    assert sampling_counts(trainer) == {
        "rounds": 3,
        "prompts_drawn": 21,
        "prompts_kept": 8,
        "prompts_surplus": 3,
        "prompts_no_spread": 10,
        "prompts_outside_band": 0,
        "accuracy_drawn": pytest.approx(total / scored, rel=1e-5),
    }


def test_the_first_groups_fill_up_a_kept_batch(tmp_path):
    rounds = [[1, 0, 0, 1, 0, 0], [0] * 6]
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": by_round(rounds)},
        dynamic_sampling=True,
        dynamic_sampling_kwargs={"max_rounds": 2, "exhausted": "keep"},
        per_device_train_batch_size=24,
        max_steps=1,
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    largest = rollouts[0].rewards.nan_to_num(nan=-1).amax(dim=1).tolist()
    assert largest == [top_rewards(rounds)[0][group] for group in (0, 3, 1, 2, 4, 5)]


def test_the_number_of_fresh_prompts_is_exact(tmp_path):
    """36 of 66 are kept, so 30 * 66 / 36 = 55 more are sampled; floats would round this up to 56."""
    rounds = [[1] * 36 + [0] * 30, [1] * 55]
    trainer = make_trainer(
        tmp_path,
        trainer_options={
            "reward_funcs": by_round(rounds, size=2),
            "rollout_func": fixed_responses,
            "train_dataset": prompts(66),
        },
        dynamic_sampling=True,
        num_generations=2,
        per_device_train_batch_size=132,
        max_steps=1,
    )
    trainer.train()
    assert logged(trainer)[0]["dynamic_sampling/prompts_drawn"] == 66 + 55


def test_without_spread_in_any_group_nothing_is_learnt(tmp_path):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": lambda completions, **kwargs: [1.0] * len(completions)},
        dynamic_sampling=True,
        dynamic_sampling_kwargs={"max_rounds": 2},
        weight_decay=0.0,
        max_steps=2,
    )
    before = parameters(trainer)
    trainer.train()
    assert_same_parameters(parameters(trainer), before)
    assert [entry["loss"] for entry in logged(trainer)] == [0.0, 0.0]
    assert logged(trainer)[0]["dynamic_sampling/prompts_drawn"] == 4
    assert logged(trainer)[0]["dynamic_sampling/accuracy_drawn"] == 1.0


def test_evaluation_does_not_resample(tmp_path):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"eval_dataset": TASK.dataset("test", 8, seed=0), "reward_funcs": graded},
        dynamic_sampling=True,
    )
    scores = trainer.evaluate()
    assert 0 < scores["eval_groups/frac_no_spread"] < 1
    assert not [name for name in scores if "dynamic_sampling" in name]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_iterations": 2, "canon_metric": "random"}, {"dynamic_sampling_kwargs": {"max_rounds": 1}}],
    ids=str,
)
def test_resume(tmp_path, options):
    """Also within a rollout; fresh prompts continue where they stopped."""
    trainer_options = {"reward_funcs": graded, "train_dataset": prompts(20)}
    assert_resumes(make_trainer, tmp_path, trainer_options=trainer_options, dynamic_sampling=True, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rounds": 0}, "max_rounds=0 must lie in"),
        ({"lower": 0.6, "upper": 0.4}, "lower=0.6 must be at most upper=0.4"),
        ({"exhausted": "stop"}, "exhausted='stop' must be 'shrink', 'keep' or 'error'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DynamicSampling(**options)


def test_a_streamed_dataset(tmp_path):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": graded, "train_dataset": prompts(64).to_iterable_dataset()},
        dynamic_sampling=True,
        max_steps=3,
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    assert [rollout.rewards.tolist() for rollout in rollouts] == [[[0.0, 1.0, 0.0, 1.0]] * 2] * 3
    drawn = sum(sampling_counts(trainer, step)["prompts_drawn"] for step in range(3))
    assert drawn > 3 * 2, "the case needs fresh prompts"


def test_tool_masks_and_extra_fields_stay_with_their_responses(tmp_path):
    """The fields that a rollout_func returns for a response stay with it when it moves."""

    def with_tool(prompts, trainer):
        written = fixed_responses(prompts, trainer)
        masks = [[1] * (len(ids) - 1) + [0] for ids in written["completion_ids"]]
        return written | {"env_mask": masks, "note": [f"of {prompt}" for prompt in prompts]}

    def noted(prompts, note, **kwargs):
        assert note == [f"of {prompt}" for prompt in prompts]
        return graded(prompts, prompts, lambda *args: None)

    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": noted, "rollout_func": with_tool},
        dynamic_sampling=True,
        mask_truncated_completions=True,
        canon_metric="length",
        per_device_train_batch_size=24,
        max_steps=1,
    )
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    assert rollouts[0].rewards.tolist() == [[0.0, 1.0, 0.0, 1.0]] * 6
    # one digit, 0 to 3 sevens, '#', and the digit that a tool wrote
    assert rollouts[0].lengths.tolist() == [[2, 3, 4, 5]] * 6
    assert outputs[0]["tool_mask"].shape == outputs[0]["completion_ids"].shape
    assert logged(trainer)[0]["dynamic_sampling/rounds"] > 1


def test_rewards_stay_with_their_responses(tmp_path):
    """Every response has a distinct reward, so a misplaced one would show."""

    def own_reward(prompt, completion):
        place = int(completion[-1])
        return (int(prompt[2]) + place) / 16 if teaches(prompt) else 0.5

    def rewards(prompts, completions, **kwargs):
        return [own_reward(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": rewards, "rollout_func": fixed_responses},
        dynamic_sampling=True,
        advantage_estimator="dr_grpo",
        per_device_train_batch_size=24,
        max_steps=1,
    )
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    decode = trainer.processing_class.batch_decode
    texts = [decode(outputs[0][name], skip_special_tokens=True) for name in ("prompt_ids", "completion_ids")]
    want = torch.tensor([own_reward(*row) for row in zip(*texts, strict=True)])
    assert torch.equal(rollouts[0].rewards.flatten(), want)
    assert len({tuple(group) for group in rollouts[0].rewards.tolist()}) > 2, "the case needs different groups"
    assert logged(trainer)[0]["dynamic_sampling/rounds"] > 1

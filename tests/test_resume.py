"""A run that is resumed from any checkpoint continues bit for bit as if it had never stopped."""

import shutil

import numpy
import pandas
import pytest
import torch
from observe import keep_rollouts
from toy import TASK, assert_same_parameters, logged, make_trainer, parameters, prompts

CASES = {
    "entropy": {},
    "random metric": {"canon_metric": "random", "canon_mu": 0.7},
    "constant": {"canon_metric": "length", "canon_alpha": 0.9},
    "inter_to_intra": {"canon_mu_schedule": "inter_to_intra"},
    "intra_to_inter": {"canon_mu_schedule": "intra_to_inter"},
    "cosine_inter_to_intra": {"canon_mu_schedule": "cosine_inter_to_intra", "canon_cosine_cycles": 1},
    "cosine_intra_to_inter": {"canon_mu_schedule": "cosine_intra_to_inter", "canon_cosine_cycles": 1},
    "two updates on a rollout": {"num_iterations": 2},
    "a rollout in two parts, twice": {"num_iterations": 2, "steps_per_generation": 2, "canon_metric": "random"},
    "two rollouts a step": {"steps_per_generation": 1, "gradient_accumulation_steps": 2},
    # one of the two steps lies before the checkpoint
    "logs across steps": {"num_iterations": 2, "logging_steps": 2},
    "logs of a policy loss across steps": {"policy_loss": "kl_cov", "num_iterations": 2, "logging_steps": 2},
    "reference model": {"num_iterations": 2, "beta": 0.05},
}


def train(folder, steps=6, resume=None, **options):
    options = {"max_steps": steps, "save_strategy": "steps", "save_steps": 1} | options
    trainer = make_trainer(folder, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_resumes(tmp_path, steps, at, **options):
    whole = train(tmp_path / "whole", **options)
    for step in at:
        folder = tmp_path / f"from_{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        # Nothing but the checkpoint may carry over: disturb every global random state.
        torch.manual_seed(step)
        resumed = train(folder, resume=str(folder / f"checkpoint-{step}"), **options)
        assert resumed.state.global_step == steps
        assert_same_parameters(parameters(resumed), parameters(whole))
        if options.get("logging_steps", 1) == 1:
            assert logged(resumed) == logged(whole)
        else:
            # transformers averages the loss over the steps since the resume; everything else is the whole interval's.
            without_loss = [
                [{k: v for k, v in entry.items() if k != "loss"} for entry in logged(t)] for t in (resumed, whole)
            ]
            assert without_loss[0] == without_loss[1]


@pytest.mark.parametrize("case", CASES)
def test_resume_in_the_middle(tmp_path, case):
    assert_resumes(tmp_path, 6, at=[3], **CASES[case])


def test_resume_at_any_step(tmp_path):
    options = {"num_iterations": 2, "steps_per_generation": 2, "canon_mu_schedule": "inter_to_intra"}
    assert_resumes(tmp_path, 6, at=[1, 2, 3, 4, 5], **options)


def test_resume_in_a_later_epoch(tmp_path):
    """The prompts of the second epoch come in an order of their own."""
    trainer_options = {"train_dataset": prompts(6)}  # three rollouts an epoch
    options = {"trainer_options": trainer_options, "steps": 7, "max_steps": 7}
    assert_resumes(tmp_path, at=[3, 4], **options)


def test_the_completions_table_of_the_rollout_in_flight(tmp_path):
    options = {"num_iterations": 2, "log_completions": True}
    train(tmp_path / "whole", steps=2, **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / "resumed" / "checkpoint-1")
    train(tmp_path / "resumed", steps=2, resume=str(tmp_path / "resumed" / "checkpoint-1"), **options)
    whole, resumed = [
        pandas.read_parquet(tmp_path / run / "completions" / "completions_00002.parquet")
        for run in ("whole", "resumed")
    ]
    assert len(whole) == 8
    pandas.testing.assert_frame_equal(resumed, whole)


def test_numbers_of_numpy_in_the_completions_table(tmp_path):
    def with_columns(completions, log_extra, **kwargs):
        log_extra("letters", [numpy.int64(len(text)) for text in completions])
        log_extra("share", list(numpy.linspace(0, 1, len(completions))))
        return [float(len(text) % 2) for text in completions]

    options = {"num_iterations": 2, "log_completions": True, "trainer_options": {"reward_funcs": with_columns}}
    train(tmp_path, steps=2, **options)
    resumed = train(tmp_path, steps=2, resume=str(tmp_path / "checkpoint-1"), **options)
    assert list(resumed._logs["extra"]["share"]) == pytest.approx(numpy.linspace(0, 1, 8).tolist())


def test_the_table_is_saved_only_where_it_is_written(tmp_path):
    train(tmp_path, steps=1)
    state = torch.load(tmp_path / "checkpoint-1" / "rollout_state_0.pt", weights_only=True)
    assert (state["table"], state["table_columns"]) == ({}, {})


def test_another_batch_is_resumed_with_a_warning(tmp_path, caplog):
    train(tmp_path, steps=3, num_iterations=2)
    train(tmp_path, steps=3, num_iterations=3, resume_with_changes=True, resume=str(tmp_path / "checkpoint-1"))
    assert "a rollout in flight is sampled anew" in caplog.text


def test_rollouts_are_counted_on_where_one_is_sampled_anew(tmp_path):
    train(tmp_path, steps=4, num_iterations=2, canon_metric="random")
    # One update a rollout: two updates were two rollouts.
    options = {"max_steps": 4, "canon_metric": "random", "resume_with_changes": True}
    trainer = make_trainer(tmp_path, **options)
    rollouts, _ = keep_rollouts(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [rollout.step for rollout in rollouts] == [2, 3]


def test_a_checkpoint_of_another_trainer_is_resumed_with_a_warning(tmp_path, caplog):
    train(tmp_path, steps=3, num_iterations=2)
    (tmp_path / "checkpoint-1" / "rollout_state_0.pt").unlink()
    train(tmp_path, steps=3, num_iterations=2, resume=str(tmp_path / "checkpoint-1"))
    assert "a rollout in flight is sampled anew" in caplog.text


def test_only_the_model_is_saved_if_so_asked(tmp_path):
    train(tmp_path, steps=1, save_only_model=True)
    assert not (tmp_path / "checkpoint-1" / "rollout_state_0.pt").exists()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").exists()


def prompts_of_each_rollout():
    """A reward function, and the prompts that it is shown, without their repetitions."""
    seen = []

    def keeps(prompts, completions, **kwargs):
        seen.append(tuple(prompts[::4]))
        return TASK.reward(completions=completions, **kwargs)

    return keeps, seen


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_stream_in_any_of_its_passes(tmp_path, shuffle):
    """12 rows are six rollouts a pass: the 14 steps end in the third."""

    def run(folder, resume=None):
        reward, seen = prompts_of_each_rollout()
        options = {"max_completion_length": 4, "shuffle_dataset": shuffle}
        data = {"reward_funcs": reward, "train_dataset": prompts(12).to_iterable_dataset()}
        return train(folder, steps=14, resume=resume, trainer_options=data, **options), seen

    whole, seen = run(tmp_path)
    assert [len(set(sum(seen[first : first + 6], ()))) for first in (0, 6)] == [12, 12]
    assert (seen[:6] == seen[6:12]) is not shuffle
    for at in (5, 6, 7, 8, 12, 13):
        torch.manual_seed(at)
        resumed, seen_later = run(tmp_path, str(tmp_path / f"checkpoint-{at}"))
        assert seen_later == seen[at:], at
        assert_same_parameters(parameters(resumed), parameters(whole))
        assert logged(resumed) == logged(whole)


def test_a_stream_that_is_resumed_with_more_steps(tmp_path):
    """The share of a pass that transformers notes is one of all steps."""

    def run(steps, resume=None, **options):
        reward, seen = prompts_of_each_rollout()
        data = {"reward_funcs": reward, "train_dataset": prompts(12).to_iterable_dataset()}
        train(tmp_path, steps, resume, max_completion_length=4, trainer_options=data, **options)
        return seen

    seen = run(8)
    longer = run(12, resume=str(tmp_path / "checkpoint-4"), resume_with_changes=True)
    assert longer[:4] == seen[4:]
    assert set(sum(longer[2:], ())) == set(sum(seen[:6], ()))


@pytest.mark.parametrize("stream", [False, True])
def test_a_run_that_has_ended_stays_as_it_is(tmp_path, stream):
    """The last line of a job script that is started again must not train one step more."""
    data = prompts(12).to_iterable_dataset() if stream else prompts(12)
    options = {"trainer_options": {"train_dataset": data}, "steps": 2}
    ended = train(tmp_path, **options)
    resumed = train(tmp_path, resume=True, **options)
    assert resumed.state.global_step == 2
    assert_same_parameters(parameters(resumed), parameters(ended))
    assert logged(resumed) == logged(ended)

"""Rollouts are counted as they are made; a second run of a trainer starts over."""

import math

import pandas
import pytest
import torch
from observe import keep_rollouts
from toy import TASK, assert_same_parameters, logged, make_trainer, parameters, prompts
from transformers import TrainerCallback

from canon_trl import CANONTrainer

# With these options a rollout of one micro-batch has one prompt.
SMALL = {"per_device_train_batch_size": 4, "max_completion_length": 2, "learning_rate": 0.0}


def counted(trainer, **options):
    """Train; return the steps and totals that the estimator received."""
    rollouts = keep_rollouts(trainer)
    trainer.train(**options)
    return [rollout.step for rollout in rollouts], {rollout.total_steps for rollout in rollouts}


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("length", [{"max_steps": 3}, {"max_steps": -1, "num_train_epochs": 2.5}], ids=str)
@pytest.mark.parametrize(
    "batches",
    [
        {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
        {"gradient_accumulation_steps": 4, "steps_per_generation": 6},
        {"gradient_accumulation_steps": 5, "steps_per_generation": 2, "num_iterations": 2},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 3},
        {"gradient_accumulation_steps": 1, "steps_per_generation": 3},
        {"gradient_accumulation_steps": 5},
    ],
    ids=str,
)
def test_rollouts_are_counted_as_they_are_made(tmp_path, size, length, batches):
    """Also where the last update of an epoch takes the remainder."""
    trainer_options = {"train_dataset": prompts(size)}
    trainer = make_trainer(tmp_path, trainer_options=trainer_options, **SMALL, **length, **batches)
    steps, totals = counted(trainer)
    assert steps == list(range(len(steps)))
    assert totals == {len(steps)}
    assert trainer.args.rollouts(size) == len(steps)


def test_a_schedule_ends_with_the_run(tmp_path):
    """Four epochs of three rollouts in two updates: 12 rollouts, not the 16 of 8 updates of two."""
    trainer = make_trainer(
        tmp_path,
        trainer_options={"train_dataset": prompts(3)},
        max_steps=-1,
        num_train_epochs=4,
        gradient_accumulation_steps=2,
        steps_per_generation=1,
        canon_mu_schedule="cosine_inter_to_intra",
        canon_cosine_cycles=1,
        **SMALL,
    )
    trainer.train()
    # Warm-up of 2 in 12, then one cycle of 10, in which the last rollout is at 9/10; the last update has only it.
    want = 0.4 + 0.6 * (1 + math.cos(math.pi * 0.9)) / 2
    assert (
        [entry["canon/mu"] for entry in logged(trainer)][-1] == pytest.approx(want) == pytest.approx(0.415, abs=1e-3)
    )


@pytest.mark.parametrize("stream", [False, True])
def test_an_evaluation_before_training_has_the_same_total(tmp_path, stream):
    dataset = prompts(7).to_iterable_dataset() if stream else prompts(7)
    trainer = make_trainer(
        tmp_path,
        trainer_options={"train_dataset": dataset, "eval_dataset": prompts(2)},
        gradient_accumulation_steps=2,
        steps_per_generation=1,
        **(SMALL | {"max_steps": 3, "per_device_eval_batch_size": 8}),
    )
    rollouts = keep_rollouts(trainer)
    trainer.evaluate()
    trainer.train()
    assert [rollout.step for rollout in rollouts] == [0, 0, 1, 2, 3, 4, 5]
    assert {rollout.total_steps for rollout in rollouts} == {6} == {trainer.args.rollouts(None if stream else 7)}


@pytest.mark.parametrize("kept", [True, False])
def test_a_resumed_run_continues_counting(tmp_path, kept):
    """From the middle and the end of an epoch, and when the state of the rollout in flight is missing."""
    options = SMALL | {"max_steps": 5, "gradient_accumulation_steps": 2, "steps_per_generation": 1, "save_steps": 1}
    options |= {"save_strategy": "steps"}
    trainer_options = {"train_dataset": prompts(3)}
    make_trainer(tmp_path, trainer_options=trainer_options, **options).train()  # 2 rollouts, 1, 2, 1, 2
    for step, made in {1: 2, 2: 3, 3: 5, 4: 6}.items():
        checkpoint = tmp_path / f"checkpoint-{step}"
        if not kept:
            (checkpoint / "rollout_state_0.pt").unlink()
        trainer = make_trainer(tmp_path, trainer_options=trainer_options, **options)
        steps, totals = counted(trainer, resume_from_checkpoint=str(checkpoint))
        assert steps == list(range(made, 8))
        assert totals == {8}


def constant(completions, **kwargs):
    return [0.0] * len(completions)


class Interruption(TrainerCallback):
    """Ends a run in the middle of a rollout, before its numbers are logged."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "options",
    [
        {"canon_mu_schedule": "cosine_inter_to_intra", "canon_cosine_cycles": 1},
        {"canon_metric": "random", "num_iterations": 2, "steps_per_generation": 2, "log_completions": True},
        {"policy_loss": "clip_cov", "policy_loss_kwargs": {"ratio": 0.5, "low": -1.0}, "num_iterations": 3},
        {"dynamic_sampling": True, "dynamic_sampling_kwargs": {"max_rounds": 3, "exhausted": "keep"}},
        {"use_adaptive_entropy": True, "entropy_target": 5.0, "entropy_coef_max": 1.0, "entropy_coef_delta": 0.1},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 3, "logging_steps": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_second_run_equals_that_of_a_new_trainer_with_the_same_weights(tmp_path, options):
    """The first run leaves no rollout in flight, counter, optimiser moment or table row."""
    always = {"reward_funcs": [TASK.reward, constant]}
    options = {"max_steps": 4} | options
    trainer = make_trainer(tmp_path / "both", trainer_options=always | {"callbacks": [Interruption()]}, **options)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Interruption)
    fresh = make_trainer(tmp_path / "fresh", trainer_options=always, **options)
    fresh.model.load_state_dict(trainer.model.state_dict())
    runs = []
    for each in (trainer, fresh):
        torch.manual_seed(7)  # for sampling
        runs.append(counted(each))
    assert runs[0] == runs[1]
    assert logged(trainer) == logged(fresh)
    assert_same_parameters(parameters(trainer), parameters(fresh))
    if "log_completions" in options:
        tables = [tmp_path / name / "completions/completions_00001.parquet" for name in ("both", "fresh")]
        pandas.testing.assert_frame_equal(*map(pandas.read_parquet, tables))


def test_a_given_optimiser_keeps_its_state(tmp_path):
    """Only the user decides when to reset it."""
    trainer = make_trainer(tmp_path, max_steps=1)
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e-2)
    trainer = CANONTrainer(trainer.model, TASK.reward, trainer.args, prompts(), optimizers=(optimizer, None))
    for _ in range(2):
        trainer.train()
        assert trainer.optimizer.optimizer is optimizer


def test_two_trainers_with_one_list_of_reward_functions(tmp_path):
    """The first one's checks and names do not reach the second."""
    functions = [TASK.reward, constant]
    for _ in range(2):
        trainer = make_trainer(tmp_path, max_steps=1, trainer_options={"reward_funcs": functions})
        trainer.train()
        names = {name for name in logged(trainer)[0] if name.endswith("/mean")}
        assert names >= {"rewards/accuracy/mean", "rewards/constant/mean"}
    assert functions == [TASK.reward, constant]


def test_resuming_after_another_run_of_the_same_trainer(tmp_path):
    """The run continues from the checkpoint, whatever the trainer did before."""
    options = {"max_steps": 4, "num_iterations": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path, **options)
    trainer.train()
    after_once = parameters(trainer)
    torch.manual_seed(7)
    steps, totals = counted(trainer, resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert (steps, totals) == ([1], {2})
    assert_same_parameters(parameters(trainer), after_once)
    (tmp_path / "checkpoint-3" / "rollout_state_0.pt").unlink()
    assert counted(trainer, resume_from_checkpoint=str(tmp_path / "checkpoint-3")) == ([1], {2})
    assert counted(trainer) == ([0, 1], {2})

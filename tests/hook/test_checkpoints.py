"""The checkpoints that a run resumes from, and those that it rejects."""

import logging
import os
import re
import resource
import shutil
import signal
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from toy import assert_same_parameters, length_reward, logged, make_trainer, parameters, prompts
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from canon_trl.hook.checkpoints import ROLLOUT_STATE, RUN_OPTIONS, checkpoints_of, is_complete
from canon_trl.hook.reference_state import check_reference

SAVING = {"save_strategy": "steps", "save_steps": 1}


def train(folder, resume=None, **options):
    trainer = make_trainer(folder, **(SAVING | options))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three steps with its three checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


def cut_off(checkpoint):
    """Leave it as if the run had been killed before the last file."""
    (checkpoint / RUN_OPTIONS).unlink()


def test_the_last_complete_checkpoint_is_resumed_with_a_message(folder, whole, caplog):
    cut_off(folder / "checkpoint-3")
    with caplog.at_level(logging.WARNING, logger="canon_trl"):
        resumed = train(folder, resume=True)
    assert f"checkpoint-3 is incomplete: resuming from {folder}/checkpoint-2" in caplog.text
    assert_same_parameters(parameters(resumed), parameters(whole[1]))
    assert logged(resumed) == logged(whole[1])


def test_without_a_complete_checkpoint_training_starts_over(folder, whole, caplog):
    for step in (1, 2, 3):
        cut_off(folder / f"checkpoint-{step}")
    with caplog.at_level(logging.WARNING, logger="canon_trl"):
        begun = train(folder, resume=True)
    assert "no complete checkpoint to resume from: training begins at step 0" in caplog.text
    assert_same_parameters(parameters(begun), parameters(whole[1]))


def test_a_named_checkpoint_must_be_complete(folder):
    cut_off(folder / "checkpoint-3")
    message = "checkpoint-3' is incomplete, or not a checkpoint; .* has checkpoint-2, chec"
    with pytest.raises(ValueError, match=message):
        train(folder, resume=str(folder / "checkpoint-3"))
    with pytest.raises(ValueError, match=r"checkpoint-9' does not exist; .* has checkpoint-2, checkpoint-1"):
        train(folder, resume=str(folder / "checkpoint-9"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"canon_mu": 0.5}, "canon_mu=1.0 in the checkpoint, 0.5 now"),
        ({"learning_rate": 0.5}, "learning_rate=0.001 in the checkpoint, 0.5 now"),
        ({"advantage_estimator": "grpo"}, "advantage_estimator='canon' in the checkpoint, 'grpo' now"),
        (
            {"trainer_options": {"reward_funcs": length_reward}},
            "reward_functions=['accuracy'] in the checkpoint, ['length_",
        ),
        ({"trainer_options": {"train_dataset": prompts(32)}}, "prompts=64 in the checkpoint, 32 now"),
        (
            {"trainer_options": {"canon_metric": lambda mask: mask.sum(1)}},
            "metrics=['entropy'] in the checkpoint, ['<lambda>']",
        ),
    ],
)
def test_changed_options_are_named_and_rejected(folder, options, named):
    message = re.escape(named) + r".*\. Resume with the same options, or set resume_with_changes=True"
    with pytest.raises(ValueError, match=message):
        train(folder, resume=True, **options)


def test_changed_options_are_accepted_on_request(folder, caplog):
    with caplog.at_level(logging.WARNING, logger="canon_trl"):
        resumed = train(folder, resume=str(folder / "checkpoint-1"), resume_with_changes=True, canon_mu=0.5)
    assert "was made with other options: canon_mu=1.0 in the checkpoint, 0.5 now" in caplog.text
    assert [entry["canon/mu"] for entry in logged(resumed)] == [1.0, 0.5, 0.5]


def test_options_that_do_not_affect_learning_may_change(folder, whole):
    shown = {"logging_steps": 1, "report_to": ["tensorboard"], "save_total_limit": 5, "reward_time_limit": 60.0}
    resumed = train(folder, resume=str(folder / "checkpoint-1"), log_completions=True, **shown)
    assert_same_parameters(parameters(resumed), parameters(whole[1]))


def test_a_folder_with_another_run_is_rejected(folder, whole):
    message = "has checkpoint-3 of another run .canon_mu=1.0 in the checkpoint, 0.5 now.; choose another output_dir"
    with pytest.raises(ValueError, match=message):
        train(folder, canon_mu=0.5)
    assert_same_parameters(parameters(train(folder)), parameters(whole[1]))  # the same run again


def test_a_folder_with_a_run_of_another_trainer_is_rejected(folder):
    """Otherwise a restart after a kill would resume from the other run's last checkpoint."""
    for name in (RUN_OPTIONS, ROLLOUT_STATE.format(rank=0)):
        (folder / "checkpoint-3" / name).unlink()
    with pytest.raises(ValueError, match=r"has checkpoint-3 of another run .it was made by another trainer.; choose"):
        train(folder)


def test_a_killed_repetition_leaves_no_partial_checkpoint_marked_complete(folder):
    """An older checkpoint loses its mark of completeness before any of its files is overwritten."""
    trainer, seen = make_trainer(folder, **SAVING), []
    save = trainer.save_model
    trainer.save_model = lambda to, *args, **kwargs: (seen.append(is_complete(Path(to))), save(to, *args, **kwargs))
    trainer.train()
    assert seen == [False, False, False]


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-20", "checkpoint-best", "model"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-100", "checkpoint-20", "checkpoint-9"]


def test_a_checkpoint_of_trls_own_trainer_is_resumed(tmp_path, caplog):
    args = {"trainer_class": GRPOTrainer, "config_class": GRPOConfig}
    train(tmp_path, **args)
    options = {"advantage_estimator": "dr_grpo"}
    with caplog.at_level(logging.WARNING, logger="canon_trl"):
        resumed = train(tmp_path, resume=True, max_steps=4, **options)
    assert "as in a checkpoint of another trainer or of fewer processes: sampling the unfinished" in caplog.text
    assert [entry["step"] for entry in logged(resumed)] == [1, 2, 3, 4]


def test_old_checkpoints_are_deleted_once_the_new_one_is_complete(tmp_path):
    trainer = make_trainer(tmp_path, **SAVING, save_total_limit=1)
    seen, save = [], trainer.save_model

    def look(folder, *args, **kwargs):
        seen.append(sorted(path.parent.name for path in tmp_path.glob(f"checkpoint-*/{RUN_OPTIONS}")))
        save(folder, *args, **kwargs)

    trainer.save_model = look
    trainer.train()
    assert seen == [[], ["checkpoint-1"], ["checkpoint-2"]]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert trainer.args.save_total_limit == 1


def test_the_best_checkpoint_is_kept_and_loaded_at_the_end(tmp_path):
    """The first evaluation is the best, as the reward falls with every call."""
    calls = count()

    def falls(completions, **kwargs):
        call = next(calls)
        return [len(text) - 100.0 * call for text in completions]

    best = {"load_best_model_at_end": True, "metric_for_best_model": "reward", "greater_is_better": True}
    options = SAVING | best | {"save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 1}
    data = {"reward_funcs": falls, "eval_dataset": prompts(4)}
    trainer = make_trainer(tmp_path, trainer_options=data, **options)
    trainer.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-3"}
    kept = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    loaded = trainer.model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in kept.items())
    assert not torch.equal(
        *(load_file(path / "model.safetensors")[next(iter(kept))] for path in checkpoints_of(tmp_path))
    )


@pytest.mark.parametrize(
    "name", ["rollout_state_0.pt", "optimizer.pt", "trainer_state.json", ".run_options.json.partial"]
)
def test_a_full_disk_ends_training_and_keeps_complete_checkpoints(tmp_path, whole, name):
    """Every write to this file fails as on a full disk."""
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / name).symlink_to("/dev/full")
    with pytest.raises((OSError, RuntimeError)) as caught:
        train(tmp_path)
    if name != ".run_options.json.partial":  # written after everything else
        assert caught.value.__notes__ == [
            f"{tmp_path}/checkpoint-2 is incomplete, so no run will resume from it; earlier checkpoints are unchanged"
        ]
    shutil.rmtree(tmp_path / "checkpoint-2")  # to make room
    resumed = train(tmp_path, resume=True)
    assert_same_parameters(parameters(resumed), parameters(whole[1]))
    assert logged(resumed) == logged(whole[1])


def test_a_disk_too_full_for_the_weights_gives_the_same_error(tmp_path):
    """safetensors raises a different error."""
    ends = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, ends[1]))  # the weights take 1.7 MB
    try:
        with pytest.raises(Exception, match="File too large") as caught:
            train(tmp_path, max_steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, ends)
    assert "checkpoint-1 is incomplete" in caught.value.__notes__[0]


def test_a_checkpoint_is_pushed_once_it_is_complete(tmp_path, caplog):
    """The upload fails here, which gives a warning and does not stop training."""

    class Pushes(TrainerCallback):
        whole = []

        def on_push_begin(self, args, state, control, **kwargs):
            self.whole.append(is_complete(tmp_path / f"checkpoint-{state.global_step}"))

    trainer = make_trainer(tmp_path, **SAVING, hub_always_push=True)
    trainer.args.push_to_hub, trainer.hub_model_id, trainer.push_in_progress = True, "me/model", None
    trainer.add_callback(Pushes())
    with caplog.at_level(logging.WARNING, logger="canon_trl"):
        trainer.train()
    assert Pushes.whole == [True, True, True]
    assert "a checkpoint was not uploaded; training continues" in caplog.text


def test_weights_alone_cannot_be_resumed(tmp_path):
    train(tmp_path, save_only_model=True)
    with pytest.raises(
        ValueError, match=r"checkpoint-3 has no state of the optimiser and .* as with save_only_model=T"
    ):
        train(tmp_path, resume=True, save_only_model=True)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
def test_a_missing_optimiser_state_is_an_error(folder, name):
    (folder / "checkpoint-3" / name).unlink()
    with pytest.raises(ValueError, match="checkpoint-3 has no state of the optimiser and the learning rate"):
        train(folder, resume=True)


def test_a_missing_synced_reference_is_an_error(tmp_path, caplog):
    options = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1}
    train(tmp_path, **options)
    (tmp_path / "checkpoint-2" / "reference.safetensors").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-2 has no reference.safetensors, from which sync_ref_model=True"):
        train(tmp_path, resume=str(tmp_path / "checkpoint-2"), **options)
    with caplog.at_level(logging.WARNING, logger="canon_trl"):
        train(tmp_path, resume=str(tmp_path / "checkpoint-2"), resume_with_changes=True, **options)
    assert "sync_ref_model=True would restore the reference model: using the initial one" in caplog.text


def test_a_reference_model_under_fsdp1_is_rejected():
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1))
    with pytest.raises(ValueError, match="sync_ref_model=True does not work with FSDP1"):
        check_reference(SimpleNamespace(state=state))


def test_a_missing_random_state_gives_a_warning(folder, caplog):
    (folder / "checkpoint-2" / "rng_state.pth").unlink()
    with caplog.at_level(logging.WARNING, logger="canon_trl"):
        train(folder, resume=str(folder / "checkpoint-2"))
    assert "checkpoint-2 has no random state for the ranks [0]: they sample other responses" in caplog.text


def test_a_terminated_job_leaves_a_checkpoint_that_can_be_resumed(tmp_path):
    """After SIGTERM during scoring, transformers writes it three seconds later, before the optimiser steps."""
    calls = []

    def sends_sigterm(completions, **kwargs):
        calls.append(len(completions))
        if len(calls) == 2 and tmp_path.name == "stopped":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(4)
        return length_reward(completions)

    options = {"max_steps": 5, "enable_jit_checkpoint": True, "save_strategy": "no", "logging_steps": 2}
    options |= {"gradient_accumulation_steps": 2, "trainer_options": {"reward_funcs": sends_sigterm}}
    whole = train(tmp_path / "whole", **options)
    calls.clear()
    tmp_path = tmp_path / "stopped"
    train(tmp_path, **options)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-2"]
    resumed = train(tmp_path, resume=True, **options)
    assert_same_parameters(parameters(resumed), parameters(whole))
    assert logged(resumed) == logged(whole)

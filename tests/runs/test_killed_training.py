"""Training that is killed with SIGKILL at any point ends after a restart like an undisturbed run."""

import logging
import multiprocessing
import signal

import pytest
from killed_run import OPTIONS, POINTS, run
from toy import assert_same_parameters, logged, make_trainer, parameters

from canon_trl.hook.checkpoints import checkpoints_of, is_complete

# The server imports everything once, so that its forks start immediately.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["killed_run"])

SMOKE = ("a checkpoint, half of the weights",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("whole"), **OPTIONS)
    trainer.train()
    return trainer


@pytest.mark.parametrize("point", [pytest.param(name, marks=[pytest.mark.smoke] * (name in SMOKE)) for name in POINTS])
def test_a_run_killed_during(tmp_path, whole, point, caplog):
    process = context.Process(target=run, args=(str(tmp_path), point))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    left = {path.name: is_complete(path) for path in checkpoints_of(tmp_path)}
    cut_off = {"checkpoint-3": False} if "checkpoint" in point else {}
    assert left == cut_off | {"checkpoint-2": True, "checkpoint-1": True}

    restarted = make_trainer(tmp_path, **OPTIONS)
    with caplog.at_level(logging.WARNING, logger="canon_trl"):
        restarted.train(resume_from_checkpoint=True)
    assert ("checkpoint-3 is incomplete" in caplog.text) == bool(cut_off)
    assert_same_parameters(parameters(restarted), parameters(whole))
    assert logged(restarted) == logged(whole)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-4", "checkpoint-3"]

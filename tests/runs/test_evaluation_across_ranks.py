"""Evaluation during training in separate processes: on two ranks, with ZeRO-3, and logged to Trackio."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest
from distributed.evaluation_across_ranks import run
from launching import launch, with_tests
from toy import assert_same_but_for_rounding

TO_TRACKIO = """
import json, sys
from toy import TASK, make_trainer
from canon_trl.evaluation import EvaluationCallback

options = {"report_to": ["trackio"], "project": "evaluation", "run_name": "a run"}
trainer = make_trainer(sys.argv[1], max_steps=2, **options)
data = TASK.dataset("test", 4)
trainer.add_callback(EvaluationCallback(trainer, data, TASK.reward, every_steps=1, num_samples=4, pass_ks=[2]))
trainer.train()
json.dump(trainer.state.log_history, open(sys.argv[1] + "/history.json", "w"))
"""


def test_trackio_stores_the_logged_numbers(tmp_path):
    """This runs in a separate process because Trackio reads TRACKIO_DIR on import."""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": with_tests()}
    command = [sys.executable, "-c", TO_TRACKIO, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    history = json.loads((tmp_path / "history.json").read_text())
    want = [entry for entry in history if "evaluation/avg@4" in entry]
    assert [entry["step"] for entry in want] == [0, 1, 2]
    with sqlite3.connect(tmp_path / "trackio" / "evaluation.db") as database:
        logged = [json.loads(row) for (row,) in database.execute("select metrics from metrics order by id")]
    got = [entry for entry in logged if "train/evaluation/avg@4" in entry]
    for entry, stored in zip(want, got, strict=True):
        assert stored["train/global_step"] == entry["step"]
        names = [name for name in entry if name.startswith("evaluation/")]
        assert {name: stored[f"train/{name}"] for name in names} == {name: entry[name] for name in names}


def test_two_ranks_evaluate_like_one(tmp_path):
    launch("cpu_two_processes.yaml", "evaluation_across_ranks.py", tmp_path)
    first, second = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    alone = run(tmp_path / "alone", ranks=1)
    assert [entry["step"] for entry in alone] == [0, 1, 2]
    assert first == second
    assert_same_but_for_rounding(first, alone)


def test_zero_3_evaluates_the_whole_model(tmp_path):
    """DeepSpeed gathers sharded parameters, so the numbers equal those of one process."""
    launch("zero3_cpu.yaml", "evaluation_across_ranks.py", tmp_path)
    alone = run(tmp_path / "alone", ranks=1)
    for rank in (0, 1):
        for got, want in zip(json.loads((tmp_path / f"{rank}.json").read_text()), alone, strict=True):
            assert got == pytest.approx(want, abs=1e-6)

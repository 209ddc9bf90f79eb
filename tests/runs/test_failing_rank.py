"""If one of two ranks fails, both stop soon and name the reason."""

import os
import subprocess
import sys

import pytest
from launching import TESTS, with_tests

FAULTS = {
    "raises": ["ZeroDivisionError: the answer key is missing", "in reward function 'raises'"],
    "hangs": ["reward function 'hangs' took longer than reward_time_limit=2.0 seconds"],
    "metric": ["ZeroDivisionError: the metric has no words", "in metric 'breaks'"],
    "answer": ["ZeroDivisionError: the answer has no end", "in the answer_extractor"],
    "prompt": ["ValueError: train_dataset: the prompt is None; fix it or remove its row"],
    "not finite": ["optimiser step 0: the rollout is not sampled. Not finite: parameter model.embed_tokens.weight"],
}

SMOKE = ("raises",)


def run_with_fault(tmp_path, fault):
    """Return the exit code and the output of the run; fail if it hangs."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(TESTS / "configs" / "cpu_two_processes.yaml"), "--main_process_port", "0"]
    command += [str(TESTS / "distributed" / "failing_rank.py"), str(tmp_path), fault]
    environment = os.environ | {"PYTHONPATH": with_tests()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("fault", [pytest.param(name, marks=[pytest.mark.smoke] * (name in SMOKE)) for name in FAULTS])
def test_both_ranks_name_the_reason(tmp_path, fault):
    code, printed = run_with_fault(tmp_path, fault)
    assert code != 0
    for reason in FAULTS[fault]:
        assert reason in printed, printed[-6000:]
    if fault != "not finite":  # both ranks raise this error
        assert "RuntimeError: rank 1 of 2 failed: " in printed


def test_killing_one_rank_stops_the_other(tmp_path):
    code, printed = run_with_fault(tmp_path, "killed")
    assert code != 0
    assert "exitcode  : -9" in printed, printed[-6000:]

"""How commands end on the screen: errors, Ctrl-C, and the warnings of other libraries."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest
from launching import TESTS, with_tests
from recipe_runs import RUN

from canon_trl.hook.checkpoints import checkpoints_of, is_complete

PROGRAM = [sys.executable, "-m", "canon_trl"]
LAUNCHED = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
REWARDS = """
def breaks(completions, **kwargs):
    raise ValueError("the answer key is missing")


def too_few(completions, **kwargs):
    return [1.0]
"""


def environment(folder):
    (folder / "my_rewards.py").write_text(REWARDS)
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{with_tests()}"}


def run(folder, *command):
    """Run a command to its end; return its exit code and the lines on the screen."""
    done = subprocess.run(
        command, env=environment(folder), text=True, timeout=240, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.returncode, done.stdout.rstrip().splitlines()


def train(folder, *flags):
    return ["train", *RUN, "--output_dir", str(folder / "run"), "--disable_tqdm", "false", *flags]


@pytest.mark.smoke
def test_an_error_of_the_user_is_the_last_line(tmp_path):
    code, lines = run(tmp_path, *PROGRAM, *train(tmp_path, "--canon_mu", "2"))
    assert (code, lines[-1]) == (2, "error: canon_mu=2.0 must lie in [0, 1]")
    assert "Traceback" not in "\n".join(lines)


def test_a_check_during_training_is_the_last_line_too(tmp_path):
    code, lines = run(tmp_path, *PROGRAM, *train(tmp_path, "--reward_funcs", "my_rewards:too_few"))
    expected = "error: reward function 'too_few' returned 1 rewards for 8 completions; it must return one each"
    assert (code, lines[-1]) == (2, expected)


def test_a_fault_in_a_reward_function_keeps_its_traceback(tmp_path):
    code, lines = run(tmp_path, *PROGRAM, *train(tmp_path, "--reward_funcs", "my_rewards:breaks"))
    assert code == 1
    assert lines[-2:] == ["ValueError: the answer key is missing", "in reward function 'breaks'"]
    assert "Traceback (most recent call last):" in lines


@pytest.mark.parametrize("quiet", [False, True])
def test_under_accelerate_the_line_is_the_last_of_the_process(tmp_path, quiet):
    launcher = [*LAUNCHED, "--config_file", str(TESTS.parent / "accelerate_configs" / "cpu.yaml")]
    code, lines = run(
        tmp_path, *launcher, *["--quiet"] * quiet, "-m", "canon_trl", *train(tmp_path, "--canon_mu", "2")
    )
    error = lines.index("error: canon_mu=2.0 must lie in [0, 1]")
    assert code == 1  # of the launcher
    assert ("Traceback" in lines[error + 1]) if not quiet else error == len(lines) - 1
    assert not any("values were not passed" in line for line in lines)  # thanks to the --config_file


def test_known_noise_is_silent(tmp_path):
    code, lines = run(tmp_path, *PROGRAM, *train(tmp_path, "--gradient_checkpointing", "true"))
    shown = "\n".join(lines)
    assert code == 0, shown
    assert "Warning" not in shown and "pin_memory" not in shown and "deprecated" not in shown


def interrupt(command, folder, when):
    """Press Ctrl-C once `when()`; return the exit code and what is on the screen."""
    log = folder / "log.txt"
    with log.open("w") as screen:
        process = psutil.Popen(command, env=environment(folder), stdout=screen, stderr=screen)
        while not when():
            assert process.is_running() and process.status() != psutil.STATUS_ZOMBIE, log.read_text()[-4000:]
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        return process.wait(timeout=120), log.read_text()


class TestInterrupt:
    LONG = ("--max_steps", "400", "--eval_strategy", "no", "--logging_steps", "1", "--task_train_prompts", "64")
    SAVES = ("--save_strategy", "steps", "--save_steps", "3")

    def test_training_draws_the_curves_and_prints_the_command_that_resumes(self, tmp_path):
        folder = tmp_path / "run"
        command = train(tmp_path, *self.LONG, *self.SAVES)
        code, shown = interrupt([*PROGRAM, *command], tmp_path, (folder / "checkpoint-3").exists)
        assert code == 130
        assert "Traceback" not in shown
        where, resume, printed = shown.rstrip().splitlines()[-3:]
        assert where.startswith("interrupted at step ") and where.endswith(f"curves.png so far: {folder}")
        assert resume == "to resume:"
        log = json.loads((folder / "metrics.json").read_text())
        step = int(where.split()[3])
        assert 3 <= step < 400 and log[-1]["step"] in (step - 1, step)
        assert (folder / "curves.png").stat().st_size > 0 and not (folder / "model.safetensors").exists()
        newest, *_ = checkpoints_of(folder)
        assert is_complete(newest)  # the one under way was finished
        assert shlex.split(printed) == ["canon-trl", *command, "--resume_from_checkpoint", str(newest)]
        (_, *given), last = shlex.split(printed), int(newest.name.split("-")[1])
        # A checkpoint belongs to a run of the same length, so that this one must stop by another Ctrl-C.
        code, shown = interrupt([*PROGRAM, *given], tmp_path, (folder / f"checkpoint-{last + 3}").exists)
        assert code == 130 and shown.rstrip().endswith(f"--resume_from_checkpoint {checkpoints_of(folder)[0]}")

    def test_training_without_checkpoints_says_so(self, tmp_path):
        folder = tmp_path / "run"
        log = tmp_path / "log.txt"
        command = [*PROGRAM, *train(tmp_path, *self.LONG)]
        code, shown = interrupt(command, tmp_path, lambda: log.exists() and "reward=" in log.read_text())
        assert code == 130
        last = "there is no checkpoint to resume from (save_strategy='no', save_steps=500)"
        assert shown.rstrip().splitlines()[-1] == last
        assert (folder / "curves.png").exists() and not list(folder.glob("*.safetensors"))

    @pytest.mark.parametrize("command", ["values", "evaluate"])
    def test_sampling_resumes_with_the_same_command(self, tmp_path, command):
        folder = tmp_path / "run"
        flags = [command, "--task", "arithmetic", "--num_samples", "2", "--output_dir", str(folder)]
        flags += ["--chunk_prompts", "2", "--task_eval_prompts", "300"]
        flags += ["--task_train_prompts", "64"] * (command == "values")
        code, shown = interrupt([*PROGRAM, *flags], tmp_path, lambda: any(folder.rglob("chunks-*")))
        assert code == 130 and "Traceback" not in shown
        said, printed = shown.rstrip().splitlines()[-2:]
        assert said == "interrupted; to resume, run the same command again:"
        assert shlex.split(printed) == ["canon-trl", *flags]

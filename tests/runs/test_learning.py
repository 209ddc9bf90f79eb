"""A shortened learning run of `make train`, started as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

pytestmark = pytest.mark.timeout(900)  # one test does a whole run
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning")
    command = [sys.executable, "-m", "accelerate.commands.launch", "examples/train_canon.py"]
    command += ["--output_dir", str(folder), "--max_steps", "40", "--task_eval_prompts", "256"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder, done


def test_accuracy_on_held_out_prompts_rises(run):
    _, done = run
    line = next(line for line in done.stdout.splitlines() if line.startswith("accuracy on held-out prompts"))
    before, after = float(line.split()[4]), float(line.split()[6])
    assert 0.35 < before < 0.6
    assert after - before >= 0.3


def test_the_progress_bar_reaches_the_end(run):
    assert "40/40" in run[1].stderr


def test_the_output_folder_has_metrics_curves_and_card(run):
    folder, _ = run
    table = pandas.read_csv(folder / "metrics.csv")
    steps = table.dropna(subset=["loss"])
    assert steps["step"].tolist() == list(range(1, 41))
    assert (steps["canon/mu"] == 1.0).all()
    for column in ("rewards/accuracy/mean", "completions/mean_length", "entropy", "canon/reward_gap"):
        assert steps[column].notna().all(), column
    assert table.dropna(subset=["eval_rewards/accuracy/mean"])["step"].tolist() == [0, 20, 40]
    history = json.loads((folder / "metrics.json").read_text())
    assert len(history) == len(table)
    assert (folder / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "2509.23962" in (folder / "README.md").read_text()


def test_the_model_loads(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run[0]), AutoTokenizer.from_pretrained(run[0])
    written = model.generate(**tokenizer("7+8*3-9+4*6=", return_tensors="pt"), max_new_tokens=40)
    assert "#" in tokenizer.decode(written[0])

"""Stage 1 of A*-PO: the script samples every prompt once, also after a kill or a rejected upload."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from datasets import load_dataset
from hub import local_hub
from huggingface_hub import ModelCard
from pyarrow import parquet
from toy import TASK, assert_same_but_for_rounding

from canon_trl.advantages import optimal_value
from canon_trl.cli import values as estimate_values
from canon_trl.policy_losses.astar_po import PAPER
from canon_trl.publishing.citation import package_citation

ROOT = Path(__file__).parents[2]


def script(folder, *flags, ranks=None):
    launcher = ["--config_file", str(ROOT / "tests" / "configs" / "cpu_two_processes.yaml")] if ranks else []
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, "--main_process_port", "0"]
    command += [str(ROOT / "examples" / "estimate_values.py"), "--task", "arithmetic", "--output_dir", str(folder)]
    command += ["--task_train_prompts", "48", "--task_eval_prompts", "16", "--chunk_prompts", "2"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return [*command, "--max_completion_length", "40", *flags], environment


def finish(command, environment):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("values") / "whole"
    return folder, finish(*script(folder))


def test_the_dataset_of_the_script(whole):
    folder, done = whole
    data = load_dataset(str(folder))
    assert {split: len(part) for split, part in data.items()} == {"train": 48, "test": 16}
    assert data["train"].column_names == ["prompt", "answer", "rewards", "v_star", "pass_rate"]
    rewards = torch.tensor(data["train"]["rewards"][:], dtype=torch.float64)
    assert rewards.shape == (48, 8) and set(rewards.flatten().tolist()) == {0.0, 1.0}
    assert 0.3 < rewards.mean() < 0.6  # the base model's accuracy
    assert data["train"]["v_star"][:] == pytest.approx(optimal_value(rewards, beta=0.5).tolist(), rel=1e-12)
    assert data["train"]["prompt"][:] == TASK.dataset("train", 48)["prompt"][:]
    card = (folder / "README.md").read_text()
    for line in ("| `num_samples` | `8` |", "| `seed` | `0` |", "| `temperature` | `1.0` |", "arithmetic_model"):
        assert line in card, line
    assert "24/24" in done.stderr, "the progress bar must reach the end"


def test_two_ranks_and_a_kill_give_the_same_dataset(whole, tmp_path):
    """Kill the script on two processes after both have recorded a chunk, then finish on one process."""
    folder = tmp_path / "killed"
    command, environment = script(folder, ranks=2)
    process = psutil.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        chunks = [path.read_text().count("\n") for path in folder.glob(".progress/train/chunks-*")]
        if len(chunks) == 2 and min(chunks) > 0:
            for each in [*process.children(recursive=True), process]:
                each.kill()
            break
        time.sleep(0.02)
    process.wait()
    assert not (folder / "train.parquet").exists(), "the run has ended before the kill"
    known = [json.loads(line) for path in folder.glob(".progress/train/*.jsonl") for line in whole_lines(path)]
    assert 2 <= len(known) < 24
    finish(*script(folder))
    for split in ("train", "test"):
        tables = [parquet.read_table(each / f"{split}.parquet").to_pylist() for each in (folder, whole[0])]
        assert_same_but_for_rounding(*tables)  # only V* may differ by rounding


def whole_lines(path):
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_a_second_run_samples_nothing(whole, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(whole[0], folder)
    done = finish(*script(folder, "--beta1", "0"))
    assert "Loading weights" not in done.stderr, "no model is loaded"
    data = load_dataset(str(folder))["train"]
    assert data["v_star"][:] == pytest.approx(data["pass_rate"][:])


LOAD_BACK = """
import json
from datasets import load_dataset
print(json.dumps({split: part.to_dict() for split, part in load_dataset("me/values").items()}))
"""


def test_the_dataset_is_pushed_and_loaded_back(whole, tmp_path):
    """A rejected upload loses nothing, and the printed command repeats it."""
    folder = tmp_path / "pushed"
    shutil.copytree(whole[0], folder)
    with local_hub() as hub:
        command, environment = script(folder, "--push_to_hub", "me/values")
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment |= hub.environment | {"HF_HOME": str(tmp_path / "home"), "PATH": programs}
        hub.status = 403
        rejected = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert rejected.returncode != 0 and hub.files == {}
        hub.status = 200
        error = rejected.stderr[rejected.stderr.index("The upload failed.") :]
        assert f"All files are in {folder}; after fixing the cause, upload them with:" in error
        (retry,) = re.findall(r"hf upload .*", error)
        finish(["bash", "-c", retry], environment)
        files = hub.of("datasets/me/values")
        assert files == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert files.keys() == {"README.md", "train.parquet", "test.parquet"}
        loaded = json.loads(finish([sys.executable, "-c", LOAD_BACK], environment).stdout)
        assert loaded == {split: part.to_dict() for split, part in load_dataset(str(folder)).items()}
        finish(command, environment)
    assert hub.commits == ["datasets/me/values"] * 2
    card = files["README.md"].decode()
    assert "--dataset_name me/values" in card and {*ModelCard(card).data.tags} == {"trl", "canon_trl", "astar_po"}
    assert PAPER.citation in card and package_citation() in card
    assert "- Reference model: `arithmetic_model`\n- Data: the embedded task arithmetic\n" in card
    assert str(ROOT) not in card and str(tmp_path) not in card


def test_the_next_script_trains_on_it(whole, tmp_path):
    """`train_astar_po.py` trains on the folder of `estimate_values.py`, as in the README."""
    command = [sys.executable, "-m", "accelerate.commands.launch", str(ROOT / "examples" / "train_astar_po.py")]
    command += ["--config", "arithmetic_astar_po", "--values", str(whole[0])]
    command += ["--output_dir", str(tmp_path), "--max_steps", "2", "--per_device_train_batch_size", "16"]
    done = finish(command, os.environ | {"HF_HUB_OFFLINE": "1"})
    assert "accuracy on held-out prompts: " in done.stdout
    history = json.loads((tmp_path / "metrics.json").read_text())
    assert [entry["step"] for entry in history if "astar_po/v_star" in entry] == [1, 2]
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "curves.png").exists()
    assert "2505.20686" in (tmp_path / "README.md").read_text()


def test_newly_estimated_values_are_not_loaded_from_the_cache(tmp_path):
    """`datasets` must not return its cache of another folder with the same name."""
    for prompts in (4, 6):
        folder = tmp_path / f"{prompts} prompts" / "values"
        options = {"task": "arithmetic", "output_dir": folder, "task_train_prompts": prompts, "num_samples": 2}
        options |= {"max_completion_length": 4, "include_test": "false"}
        estimate_values.main([text for name, value in options.items() for text in (f"--{name}", str(value))])
        assert len(load_dataset(str(folder))["train"]) == prompts

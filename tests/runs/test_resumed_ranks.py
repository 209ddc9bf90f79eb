"""Ranks that resume: all make the same of a part that is missing or torn; a stream, and a sharded reference."""

import json
import os
import subprocess
import sys

import pytest
from launching import TESTS, with_tests
from toy import assert_same_parameters
from transformers import AutoModelForCausalLM


def launch(config: str, script: str, *arguments: str) -> str:
    """What was printed; an error if it fails or hangs."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(TESTS / "configs" / config)]
    command += ["--main_process_port", "0", str(TESTS / "distributed" / script), *arguments]
    environment = os.environ | {"PYTHONPATH": with_tests()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    printed = launch("cpu_two_processes.yaml", "resumed_ranks.py", str(folder))
    return [json.loads((folder / f"ends_{rank}.json").read_text()) for rank in (0, 1)], printed


def test_a_rank_whose_part_is_missing_makes_all_sample_anew(ends):
    both, printed = ends
    assert both[0]["missing"] == both[1]["missing"] == both[0]["whole"] == [1, 2, 3]
    assert "rollout_state_{rank}.pt is missing for the ranks [1]" in printed


def test_a_stream_goes_on_in_its_second_pass(ends):
    for rank in ends[0]:
        assert rank["stream"] == [1.4, 1.4]  # the pass begun, and two of the five steps of the run


NOTES = {
    "torn": "rollout_state_1.pt cannot be read; resume from an earlier checkpoint, or remove the file",
    "random state": "checkpoint-1 cannot be read; resume from an earlier checkpoint",
}


@pytest.mark.parametrize("case", NOTES)
def test_a_part_that_cannot_be_read_stops_all_ranks(ends, case):
    (first, second), _ = ends
    assert first[case].startswith("RuntimeError: rank 1 of 2 failed: ")
    assert NOTES[case] in first[case] and NOTES[case] in second[case]


def test_ranks_that_find_different_checkpoints_are_refused(ends):
    for rank, told in enumerate(ends[0]):
        assert "the ranks find different checkpoints to resume from" in told["own folders"]
        assert "['checkpoint-1', 'none']" in told["own folders"] and f"own_{rank}' must be" in told["own folders"]


@pytest.mark.parametrize("sharding", ["zero3_cpu.yaml", "cpu_two_processes.yaml"])
def test_a_sharded_reference_that_follows_the_policy(tmp_path, sharding):
    """ZeRO-3 trains with it; of FSDP2, whose training needs GPUs, the sharded parameters are saved and restored."""
    if sharding == "zero3_cpu.yaml":
        launch(sharding, "zero.py", str(tmp_path), "sync_ref_model")
        trained, resumed = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("model", "resumed")]
        assert_same_parameters(dict(resumed.named_parameters()), dict(trained.named_parameters()))
        logs = [json.loads((tmp_path / f"kl_{name}.json").read_text()) for name in ("model", "resumed")]
        assert logs[1] == logs[0] and logs[0][-1] > 0
    else:
        launch(sharding, "sharded_reference.py", str(tmp_path))

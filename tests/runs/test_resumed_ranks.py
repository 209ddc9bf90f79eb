"""Resuming on two ranks: missing and truncated files, a stream, and a sharded reference model."""

import json

import pytest
from launching import launch
from toy import assert_same_parameters
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    printed = launch("cpu_two_processes.yaml", "resumed_ranks.py", folder)
    return [json.loads((folder / f"ends_{rank}.json").read_text()) for rank in (0, 1)], printed


def test_all_ranks_sample_a_new_rollout_if_the_state_of_one_is_missing(ends):
    both, printed = ends
    assert both[0]["missing"] == both[1]["missing"] == both[0]["whole"] == [1, 2, 3]
    assert "rollout_state_{rank}.pt is missing for the ranks [1]" in printed


def test_a_stream_resumes_in_its_second_pass(ends):
    for rank in ends[0]:
        assert rank["stream"] == [1.4, 1.4]  # one pass of three steps and two of the five steps of the run


NOTES = {
    "torn": "rollout_state_1.pt cannot be read; resume from an earlier checkpoint, or remove the file",
    "random state": "checkpoint-1 cannot be read; resume from an earlier checkpoint",
}


@pytest.mark.parametrize("case", NOTES)
def test_an_unreadable_file_stops_all_ranks(ends, case):
    (first, second), _ = ends
    assert first[case].startswith("RuntimeError: rank 1 of 2 failed: ")
    assert NOTES[case] in first[case] and NOTES[case] in second[case]


def test_different_checkpoints_on_the_ranks_are_rejected(ends):
    for rank, end in enumerate(ends[0]):
        assert "the ranks find different checkpoints to resume from" in end["own folders"]
        assert "['checkpoint-1', 'none']" in end["own folders"] and f"own_{rank}' must be" in end["own folders"]


@pytest.mark.parametrize("sharding", ["zero3_cpu.yaml", "cpu_two_processes.yaml"])
def test_a_sharded_reference_that_follows_the_policy(tmp_path, sharding):
    """ZeRO-3 trains with `sync_ref_model`; FSDP2, whose training needs GPUs, saves and loads the reference."""
    if sharding == "zero3_cpu.yaml":
        launch(sharding, "zero.py", tmp_path, "sync_ref_model")
        trained, resumed = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("model", "resumed")]
        assert_same_parameters(dict(resumed.named_parameters()), dict(trained.named_parameters()))
        logs = [json.loads((tmp_path / f"kl_{name}.json").read_text()) for name in ("model", "resumed")]
        assert logs[1] == logs[0] and logs[0][-1] > 0
    else:
        launch(sharding, "sharded_reference.py", tmp_path)

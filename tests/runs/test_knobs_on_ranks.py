"""Controllers on two ranks measure numbers of both ranks and set the same values."""

import pytest
import torch
from distributed.steered_ranks import run
from launching import launch
from toy import assert_same_parameters


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steered")
    launch("cpu_two_processes.yaml", "steered_ranks.py", folder)
    return [torch.load(folder / f"steered_{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_controllers_act_on_two_ranks_like_on_one(ranks, tmp_path):
    alone = run(tmp_path, ranks=1)
    first, second = (rank["whole"] for rank in ranks)
    assert first["rollouts"] == second["rollouts"]
    assert first["knobs"] == second["knobs"]
    assert len(first["rollouts"]) == 3 and len(first["measured"]) == 6
    for got, want in zip(first["rollouts"], alone["rollouts"], strict=True):
        assert got == pytest.approx(want, rel=1e-5)
    assert first["knobs"] == pytest.approx(alone["knobs"], rel=1e-5)
    for mine, others, want in zip(first["measured"], second["measured"], alone["measured"], strict=True):
        assert mine == others
        assert mine["entropy"] == pytest.approx(want["entropy"], rel=1e-5)
        assert mine["kl"] == pytest.approx(want["kl"], rel=1e-3, abs=1e-6)
        assert mine["reward"] == want["reward"] == 0.5
    for name, value in alone["parameters"].items():
        torch.testing.assert_close(first["parameters"][name], value, atol=1e-6, rtol=1e-4)


def test_a_run_on_two_ranks_resumes_within_a_rollout(ranks):
    for rank in ranks:
        whole, resumed = rank["whole"], rank["resumed"]
        assert resumed["rollouts"] == whole["rollouts"][1:]
        assert resumed["measured"] == whole["measured"][3:]
        assert resumed["knobs"] == whole["knobs"]
        assert_same_parameters(resumed["parameters"], whole["parameters"])

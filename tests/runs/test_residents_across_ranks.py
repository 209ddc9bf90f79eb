"""The first method of each stage ends with the same numbers on one and two ranks, and resumes on two."""

import pytest
import torch
from distributed.residents_across_ranks import run
from launching import launch
from residents import FIRST
from toy import assert_same_parameters

# Numbers of the whole step across ranks; means of micro-batches depend on how responses are distributed.
COMPARED = ("loss", "grad_norm", "reward", "loss_term/ter", "controller/temperature")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    launch("cpu_two_processes.yaml", "residents_across_ranks.py", folder)
    return folder


@pytest.mark.parametrize("field", FIRST)
def test_two_ranks_end_like_one(two_ranks, tmp_path, field):
    alone = run(tmp_path, field, ranks=1)
    kept = [torch.load(two_ranks / f"{field}_{rank}.pt", weights_only=False) for rank in (0, 1)]
    for got, want in zip(kept[0]["whole"]["log"], alone["log"], strict=True):
        names = [name for name in COMPARED if name in want]
        assert [got[name] for name in names] == pytest.approx([want[name] for name in names], rel=1e-4, abs=1e-6)
    for key, value in alone["parameters"].items():
        torch.testing.assert_close(kept[0]["whole"]["parameters"][key], value, atol=1e-6, rtol=1e-5)
    for rank in kept:
        assert_same_parameters(rank["whole"]["parameters"], kept[0]["whole"]["parameters"])
        assert_same_parameters(rank["resumed"]["parameters"], rank["whole"]["parameters"])
        assert rank["resumed"]["log"] == rank["whole"]["log"]


def test_whole_groups_lie_in_one_micro_batch_of_one_rank(two_ranks):
    ranks = [torch.load(two_ranks / f"dealt_{rank}.pt") for rank in (0, 1)]
    for rollout in (slice(0, 2), slice(2, 4)):
        groups = torch.cat([torch.cat(dealt[rollout]) for dealt in ranks]).view(-1, 4)
        assert torch.equal(groups, groups[:, :1] + torch.arange(4))
        assert sorted(groups[:, 0].tolist()) == list(range(0, 32, 4))

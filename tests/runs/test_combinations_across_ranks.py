"""Every pair of methods on two ranks ends with the parameters of one rank, or is rejected on both with a reason.

`tests/combinations.py` lists the pairs and the rows that cover them. `make test` runs a sample of the rows.
"""

import re

import pytest
import torch
from combinations import REJECTED, ROWS, title
from distributed.combinations_across_ranks import RUNS, run
from launching import launch

pytestmark = pytest.mark.timeout(600)  # of all runs on two ranks; a single one that hangs ends after a minute

COMPARED = ("loss", "grad_norm", "reward")
SAMPLE = range(0, len(ROWS), 10)
OTHERS = [index for index in range(len(ROWS)) if index not in SAMPLE]
LATE = range(len(ROWS), len(RUNS))


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("sample"), SAMPLE)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("others"), [*OTHERS, *LATE])


def trained(folder, indices):
    """Train on two ranks; return the results of both ranks by index."""
    launch("cpu_two_processes.yaml", "combinations_across_ranks.py", folder, *map(str, indices))
    return {
        index: [torch.load(folder / f"{index}_{rank}.pt", weights_only=False) for rank in (0, 1)] for index in indices
    }


def assert_two_ranks_end_like_one(results, folder, index):
    first, second = results[index]
    assert [result.get("error") for result in (first, second)] == [None, None]
    assert first["hash"] == second["hash"]
    alone = run(folder, RUNS[index], ranks=1)
    for got, want in zip(first["log"], alone["log"], strict=True):
        names = [name for name in COMPARED if name in want]
        assert [got[name] for name in names] == pytest.approx([want[name] for name in names], rel=1e-4, abs=1e-6)
    for name, value in alone["parameters"].items():
        torch.testing.assert_close(first["parameters"][name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize("index", SAMPLE, ids=lambda index: title(RUNS[index]))
def test_a_sample_ends_like_one_rank(sample, tmp_path, index):
    assert_two_ranks_end_like_one(sample, tmp_path, index)


@pytest.mark.parametrize("index", OTHERS, ids=lambda index: title(RUNS[index]))
def test_two_ranks_end_like_one(others, tmp_path, index):
    assert_two_ranks_end_like_one(others, tmp_path, index)


@pytest.mark.parametrize("index", LATE, ids=lambda index: title(RUNS[index]))
def test_both_ranks_reject_a_pair_at_the_first_rollout(others, index):
    for result in others[index]:
        assert re.search(f"ValueError: {REJECTED[RUNS[index]]}", result.get("error", "no error"))

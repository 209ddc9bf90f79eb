"""The capability boundary by hand, and what it rejects."""

from functools import partial

import numpy as np
import pytest

from canon_trl.evaluation import capability_boundary, pass_at_k

# The prompts, in order: kept, lost, gained, unsolvable, kept, gained.
BEFORE = [[True, False], [True, True], [False, False], [False, False], [False, True], [False, False]]
AFTER = [[False, True], [False, False], [True, False], [False, False], [True, True], [True, True]]


def sets(boundary):
    return {name: getattr(boundary, name).tolist() for name in ("gained", "lost", "kept", "unsolvable")}


@pytest.mark.parametrize("form", [list, np.array, partial(np.array, dtype=float)], ids=["list", "array", "floats"])
def test_by_hand(form):
    boundary = capability_boundary(form(BEFORE), form(AFTER))
    assert sets(boundary) == {"gained": [2, 5], "lost": [1], "kept": [0, 4], "unsolvable": [3]}
    assert boundary.k == 2


def test_the_other_way_round():
    boundary = capability_boundary(AFTER, BEFORE)
    assert sets(boundary) == {"gained": [1], "lost": [2, 5], "kept": [0, 4], "unsolvable": [3]}
    same = capability_boundary(BEFORE, BEFORE)
    assert sets(same) == {"gained": [], "lost": [], "kept": [0, 1, 4], "unsolvable": [2, 3, 5]}


def test_the_sizes_are_those_of_pass_at_k():
    """With k = n, pass@k is the share of the prompts that are solved."""
    boundary = capability_boundary(BEFORE, AFTER)
    before, after = (pass_at_k(2, np.sum(rows, axis=1), 2).mean() for rows in (BEFORE, AFTER))
    assert (len(boundary.kept) + len(boundary.lost)) / 6 == pytest.approx(before)
    assert (len(boundary.gained) - len(boundary.lost)) / 6 == pytest.approx(after - before)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            [[1, 0]],
            [[1, 0, 0]],
            r"before has shape \(1, 2\) and after \(1, 3\); both need the same prompts and the same k",
        ),
        ([[1], [0]], [[1]], r"before has shape \(2, 1\) and after \(1, 1\)"),
        ([[1], [0, 1]], [[1], [0]], "before has prompts with different numbers of responses"),
        ([1, 0], [1, 0], r"before has shape \(2,\); it must be \(P, k\)"),
        ([[]], [[]], r"before has shape \(1, 0\); it must be \(P, k\)"),
        ([[1]], [[0.5]], "after has values other than 0 and 1"),
        ([[1]], [[float("nan")]], "after has values other than 0 and 1"),
    ],
)
def test_invalid_input(before, after, message):
    with pytest.raises(ValueError, match=message):
        capability_boundary(before, after)

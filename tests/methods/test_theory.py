"""The identities behind docs/theory.md, and the numbers on that page."""

import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from canon_trl.advantages import canon_advantage, dr_grpo_advantage, split_by_metric

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import theory  # noqa: E402

groups = st.integers(1, 6).flatmap(
    lambda half: st.lists(
        st.tuples(st.integers(0, 8).map(lambda eighths: eighths / 8), st.floats(0, 100)),
        min_size=2 * half,
        max_size=2 * half,
    )
)


@given(groups)
def test_inter_and_intra_are_dr_grpo_plus_and_minus_half_the_gap(group):
    rewards, metric = torch.tensor(group, dtype=torch.float64).T.unsqueeze(1)
    higher = split_by_metric(metric)
    half = rewards.shape[1] // 2
    gap = (rewards[higher].sum() - rewards[~higher].sum()) / half
    bonus = torch.where(higher, gap / 2, -gap / 2)
    dr_grpo = dr_grpo_advantage(rewards)
    torch.testing.assert_close(canon_advantage(rewards, metric, mu=1.0), dr_grpo + bonus, rtol=0, atol=1e-12)
    torch.testing.assert_close(canon_advantage(rewards, metric, mu=0.0), dr_grpo - bonus, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mu", [0.0, 0.25, 0.5, 1.0])
def test_mean_gradient_of_large_groups(mu, monkeypatch):
    """2 * mu * B + W, up to the responses near the border of the halves: about 1 / sqrt(G) of them."""
    monkeypatch.setitem(theory.ESTIMATORS, f"mu {mu}", partial(canon_advantage, mu=mu))
    between, within = theory.factors(f"mu {mu}", 100, 0.5)
    assert between == pytest.approx(2 * mu, abs=0.17)
    assert within == pytest.approx(1, abs=0.021)


def test_factors_of_a_group_of_two_by_hand():
    """With one response of each style, A_H = r_H - r_L and A_L = r_L - r_H; otherwise nothing differs.

    At P = 1/2 half of the groups are mixed: 1/2 * (1 * (1 - P) + (-1) * (-P)) / (2 * P * (1 - P)) = 1.
    """
    assert theory.factors("Inter", 2, 0.5) == pytest.approx((1.0, 1.0))
    assert theory.factors("Dr.GRPO", 2, 0.5) == pytest.approx((0.5, 0.5))
    assert theory.factors("Intra", 2, 0.5) == pytest.approx((0.0, 0.0))


@pytest.mark.parametrize("name", theory.LINEAR)
def test_factors_give_the_mean_over_every_group(name):
    policy = theory.Policy(share=0.3, high=0.7, low=0.4)
    groups = theory.every_group(policy, 4)
    assert groups.probability.sum() == pytest.approx(1)
    mean = groups.probability @ groups.estimates(policy, theory.ESTIMATORS[name])
    between, within = theory.factors(name, 4, policy.share)
    torch.testing.assert_close(mean, policy.gradient() * torch.tensor([between, within, within]))


def test_flipped_rewards_keep_a_share_of_the_mean():
    policy = theory.Policy(share=0.5, high=0.8, low=0.2)
    means = [
        groups.probability @ groups.estimates(policy, theory.dr_grpo)
        for groups in (theory.every_group(policy, 4), theory.every_group(policy, 4, flip=0.35))
    ]
    torch.testing.assert_close(means[1], (1 - 2 * 0.35) * means[0])


@pytest.mark.parametrize("size", [2, 4, 6])
def test_alpha_is_the_exchange_rate_of_the_accuracies(size):
    policy = theory.Policy(share=0.5, high=0.9, low=0.6)
    assert theory.tilted_between(policy, 0.6 / 0.9, size) == pytest.approx(0, abs=1e-6)
    assert theory.tilted_between(policy, 0.6, size) < 0 < theory.tilted_between(policy, 0.8, size)


@pytest.mark.parametrize("name", theory.TABLES)
def test_the_page_has_the_numbers(name):
    text = (ROOT / "docs" / "theory.md").read_text()
    shown = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", text, re.DOTALL)[1]
    tables = (shown, theory.TABLES[name]())
    got, want = ([re.split(r" *\| *", line) for line in table.splitlines()] for table in tables)
    assert len(got) == len(want)
    for got_row, want_row in zip(got, want, strict=True):
        for got_cell, want_cell in zip(got_row, want_row, strict=True):
            if re.fullmatch(r"-?\d+\.\d+", want_cell):  # another processor may round the last digit differently
                assert float(got_cell) == pytest.approx(float(want_cell), abs=0.011)
            else:
                assert got_cell == want_cell

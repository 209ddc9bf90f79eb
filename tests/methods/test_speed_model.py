"""The arithmetic of the speed benchmarks."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import step_time
import torch
from gather_model import Gather, Network, choice_rounds, fit, gathered_choice_bytes, relative_error, rollout_bytes
from gathers import expected_bytes
from marked_parts import filled_in
from report import amount, duration
from step_parts import PartClock

from canon_trl.advantages import ESTIMATORS
from canon_trl.metrics import METRICS
from canon_trl.policy_losses import POLICY_LOSSES
from canon_trl.policy_losses.covariance_over_ranks import Placement, clip_cov_over_ranks, kl_cov_over_ranks
from canon_trl.selection import together


def test_every_estimator_metric_and_policy_loss_is_timed():
    options = list(step_time.METHODS.values())
    estimators = {option.get("advantage_estimator", "canon") for option in options}
    assert estimators == set(ESTIMATORS) - {"mix"}
    assert {option.get("canon_metric") for option in options} == {*METRICS, "random", None}
    gates = {(o["policy_loss"], o["policy_loss_kwargs"]["scope"]) for o in options if "policy_loss" in o}
    scoped = [name for name, loss in POLICY_LOSSES.items() if "scope" in loss.all_options]
    assert gates == {(name, scope) for name in scoped for scope in ("micro_batch", "batch")}
    assert all(o["num_iterations"] > 1 for o in options if "policy_loss" in o or "dynamic_sampling" in o)


def test_the_order_alternates_from_pair_to_pair():
    called = []

    def side(name, seconds):
        called.append(name)
        return seconds

    pairs = step_time.paired(lambda: side("ours", 2.0), lambda: side("theirs", 1.0), pairs=3)
    assert pairs == [(2.0, 1.0)] * 3
    assert called == ["ours", "theirs", *("ours", "theirs"), *("theirs", "ours"), *("ours", "theirs")]


def test_without_time_the_minimum_number_of_pairs_is_measured():
    assert len(step_time.paired(lambda: 1.0, lambda: 1.0, pairs=50, until=0.0)) == step_time.FEWEST_PAIRS


def test_the_ratio_is_the_median_over_pairs():
    # ratios 1, 2, 3, 4, 10: the quarter points of five sorted values are the second and the fourth
    pairs = [(2.0, 2.0), (10.0, 1.0), (2.0, 1.0), (3.0, 1.0), (8.0, 2.0)]
    assert step_time.ratio(pairs) == {"median": 3.0, "quartiles": [2.0, 4.0], "pairs": 5}


def test_time_counts_for_the_innermost_part():
    seconds = iter(range(0, 100, 10))  # each reading advances the clock by ten
    clock = PartClock(now=lambda: float(next(seconds)))
    inner = clock.timed(lambda: None, "inner")
    outer = clock.timed(inner, "outer")
    same = clock.timed(lambda: None, "scoring", within=("rest",))
    clock.begin("rest")  # 0
    outer()  # 10: rest; 20: outer; 30: inner; 40: outer
    same()  # 50: rest; 60: rest, since it is called within rest
    clock.end()  # 70: rest
    assert clock.seconds == {"rest": 10 + 10 + 10 + 10, "outer": 10 + 10, "inner": 10}


def test_a_part_ends_when_it_raises():
    clock = PartClock(now=iter([0.0, 1.0, 3.0, 6.0]).__next__)

    def fail():
        raise KeyError

    clock.begin("rest")
    with pytest.raises(KeyError):
        clock.timed(fail, "failing")()
    clock.end()
    assert clock.seconds == {"rest": 1 + 3, "failing": 2}


def test_bytes_of_hand_counted_messages():
    assert rollout_bytes(16, metrics=1) == 16 * 3 * 4  # width, length and metric
    assert gathered_choice_bytes(2, tokens=5) == 2 * 4 * 5 * 4 + 2 * 8  # four floats per token, one index per response
    assert expected_bytes("canon entropy", 4, 2, 1, 16) == 48
    # 2 ranks with 4 responses of 16 tokens have 128 places, one digit: 3 sums; 256 counts and 2 totals; 3 times 256
    # counts for each of four paths; 256 counts and 3 sums. Each number has 8 bytes.
    choice = 8 * (3 + 258 + 3 * 1024 + 259)
    assert expected_bytes("kl_cov batch", 4, 2, 2, 16) == 4 * 2 * 4 + 2 * choice
    assert expected_bytes("dynamic_sampling", 4, 2, 2, 16) is None


@pytest.mark.parametrize(("responses", "width"), [(4, 8), (2**14, 3072)])
@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_the_formula_matches_the_bytes_of_a_choice(name, responses, width):
    log_probs, mask = -torch.rand(4, 8, generator=torch.Generator().manual_seed(0)), torch.ones(4, 8)
    among = Placement(response=torch.arange(4), responses=responses, width=width, seed=0, step=0)
    if name == "clip_cov":
        search = clip_cov_over_ranks(log_probs, log_probs, log_probs[:, 0], mask, among, clip=(0.2, 0.2))
    else:
        search = kl_cov_over_ranks(log_probs, log_probs[:, 0], mask, among)
    sent = []

    def reduce(local):
        sent.append(local.nbytes)
        return local

    together(reduce, search)
    assert sent == choice_rounds(name, responses * width)
    assert sum(sent) < 64_000


def test_a_ring_of_four_takes_three_rounds():
    network = Network(latency=1e-3, bandwidth=1e6)
    assert network.seconds(4, 1000) == pytest.approx(3 * (1e-3 + 1e-3))
    assert network.seconds(1, 10**9) == 0


def test_a_tree_of_1024_goes_up_and_down_ten_levels():
    network = Network(latency=1e-3, bandwidth=1e6)
    assert network.tree_reduce_seconds(1024, 1000) == pytest.approx(2 * 10 * (1e-3 + 1e-3))
    assert network.tree_reduce_seconds(5, 1000) == pytest.approx(2 * 3 * (1e-3 + 1e-3))
    # in a ring, a quarter goes around twice, in three rounds each
    assert network.ring_reduce_seconds(4, 1000) == pytest.approx(2 * 3 * (1e-3 + 0.25e-3))
    assert network.tree_reduce_seconds(1, 10**9) == network.ring_reduce_seconds(1, 10**9) == 0


@given(latency=st.floats(1e-6, 1e-2), bandwidth=st.floats(1e6, 1e11))
def test_the_fit_recovers_the_network_and_predicts_other_ranks(latency, bandwidth):
    true = Network(latency, bandwidth)
    sizes = [1, int(latency * bandwidth) + 2, 100 * int(latency * bandwidth) + 100]
    found = fit([Gather(2, sent, true.seconds(2, sent)) for sent in sizes])
    assert found.latency == pytest.approx(latency, rel=1e-6)
    assert found.bandwidth == pytest.approx(bandwidth, rel=1e-6)
    unseen = [Gather(ranks, 3 * sizes[1], true.seconds(ranks, 3 * sizes[1])) for ranks in (4, 1024)]
    assert relative_error(found.seconds, unseen) < 1e-6


def test_more_bytes_in_less_time_cannot_be_fitted():
    with pytest.raises(ValueError, match="must be positive"):
        fit([Gather(2, 10, 2.0), Gather(2, 1000, 1.0)])


def test_the_error_is_the_median_relative_error():
    network = Network(latency=1.0, bandwidth=1.0)
    measured = [Gather(2, 1, 2.0), Gather(2, 1, 1.0), Gather(2, 1, 1.6)]  # predicted is 2: off by 0, 1, 0.25
    assert relative_error(network.seconds, measured) == 0.25


def test_tables_are_filled_in():
    text = "before\n<!-- one -->\nold\n<!-- end -->\nbetween\n<!-- two -->\n<!-- end -->\n"
    want = "before\n<!-- one -->\n1\n<!-- end -->\nbetween\n<!-- two -->\n2\n<!-- end -->\n"
    assert filled_in(text, {"one": "1", "two": "2"}) == want
    assert filled_in(want, {"one": "1", "two": "2"}) == want
    with pytest.raises(ValueError, match="three"):
        filled_in(text, {"three": ""})


def test_units():
    assert [amount(count) for count in (48, 786_560, 805_437_440, 2e9)] == ["48 B", "787 kB", "805 MB", "2 GB"]
    assert [duration(seconds) for seconds in (2.5e-5, 0.0746)] == ["25 us", "74.6 ms"]

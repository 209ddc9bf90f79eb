"""pass@k, avg@k and majority@k, compared with exact arithmetic and enumeration; intervals, compared with scipy."""

import warnings
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from canon_trl.evaluation import avg_at_k, bootstrap_mean, majority_at_k, mean_share, pass_at_k


def exact(n, c, k):
    return float(1 - Fraction(comb(n - c, k), comb(n, k)))


@st.composite
def counts(draw):
    n = draw(st.integers(1, 60))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


def test_at_least_one_subset_is_required():
    with pytest.raises(ValueError, match="num_subsets=0 must be at least 1"):
        majority_at_k([["a"]], [[True]], 1, num_subsets=0)


def test_by_hand():
    # With one of four right, C(3, 2) = 3 of the C(4, 2) = 6 pairs have no right response.
    assert pass_at_k(4, [0, 1, 2, 3, 4], 2).tolist() == pytest.approx([0, 3 / 6, 5 / 6, 1, 1], abs=1e-15)
    assert pass_at_k([2, 4], [1, 1], 1).tolist() == [0.5, 0.25]
    assert avg_at_k(4, [0, 1, 4]).tolist() == [0, 0.25, 1]
    assert pass_at_k(torch.tensor([4]), torch.tensor([1]), 2).tolist() == [0.5]
    assert pass_at_k(4, 1, 2).shape == ()
    assert pass_at_k(4, [], 2).shape == (0,)


@given(counts())
def test_pass_at_k_matches_exact_fractions(case):
    n, c, k = case
    assert pass_at_k(n, [c], k)[0] == pytest.approx(exact(n, c, k), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 64, 1000, 2048, 4095, 4096])
def test_pass_at_k_is_exact_for_thousands_of_responses(k):
    correct = [0, 1, 2, 3, 10, 100, 1000, 2047, 2048, 3000, 4095, 4096]
    want = [exact(4096, c, k) for c in correct]
    assert pass_at_k(4096, correct, k).tolist() == pytest.approx(want, rel=1e-12, abs=1e-300)


@given(counts())
def test_edges_of_pass_at_k(case):
    n, c, _ = case
    assert pass_at_k(n, [c], 1)[0] == pytest.approx(c / n, abs=1e-12) == avg_at_k(n, [c])[0]
    assert pass_at_k(n, [c], n)[0] == float(c > 0)


@given(st.integers(1, 60))
def test_pass_at_k_grows_with_k_and_with_right_responses(n):
    table = np.stack([pass_at_k(n, np.arange(n + 1), k) for k in range(1, n + 1)])
    assert (table >= 0).all() and (table <= 1).all()
    assert (np.diff(table, axis=0) >= -1e-15).all()
    assert (np.diff(table, axis=1) >= -1e-15).all()


def test_pass_at_k_is_unbiased():
    """Its mean over binomial c is 1 - (1 - p)^k; that of 1 - (1 - c/n)^k is not."""
    n, p, k = 10, 0.1, 5
    weights = stats.binom.pmf(np.arange(n + 1), n, p)
    want = 1 - (1 - p) ** k
    assert weights @ pass_at_k(n, np.arange(n + 1), k) == pytest.approx(want, abs=1e-12)
    assert abs(weights @ (1 - (1 - np.arange(n + 1) / n) ** k) - want) > 0.03


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, [1], 5), "k=5 must be a whole number from 1 to the smallest num_samples, 4"),
        (([4, 2], [1, 1], 3), "k=3 must be a whole number from 1 to the smallest num_samples, 2"),
        ((4, [1], 0), "k=0 must be a whole number from 1"),
        ((4, [1], 1.5), "k=1.5 must be a whole number from 1"),
        ((4, [5], 1), r"num_correct=\[5\] must be whole numbers from 0 to num_samples=4"),
        ((4, [-1], 1), r"num_correct=\[-1\] must be whole numbers from 0"),
        ((4, [0.5], 1), r"num_correct=\[0.5\] must be whole numbers"),
        ((4, [float("nan")], 1), r"num_correct=\[nan\] must be whole numbers"),
        ((-4, [0], 1), "num_samples=-4 must be whole numbers of at least 1"),
        ((0, [0], 1), "num_samples=0 must be whole numbers of at least 1"),
    ],
)
def test_impossible_counts(arguments, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(*arguments)


def test_majority_of_all_responses_by_hand():
    answers = [
        ["7", "7", "3", None],  # 7 wins
        ["7", "3", "3", None],  # 3 wins
        ["7", "7", "3", "3"],  # a tie is shared
        [None, None, None, "7"],  # one vote is a majority of the votes
        [None] * 4,  # no votes
        ["1", "2", "3", "7"],  # a tie of four
    ]
    correct = [[answer == "7" for answer in row] for row in answers]
    assert majority_at_k(answers, correct, 4).tolist() == [1, 0, 0.5, 1, 0, 0.25]


def test_an_answer_judged_inconsistently_counts_by_its_share():
    assert majority_at_k([["7", "7", "7", "1"]], [[True, False, False, True]], 4)[0] == pytest.approx(1 / 3)


def enumerated(answers, correct, k):
    """The mean over all k-subsets, by counting."""
    total = 0.0
    subsets = list(combinations(range(len(answers)), k))
    for subset in subsets:
        votes = [answers[place] for place in subset if answers[place] is not None]
        best = [answer for answer in set(votes) if votes.count(answer) == max(map(votes.count, set(votes)))]
        right = [np.mean([correct[i] for i in range(len(answers)) if answers[i] == answer]) for answer in best]
        total += np.mean(right) if right else 0.0
    return total / len(subsets)


@given(
    st.lists(st.tuples(st.sampled_from(["1", "2", "3", None]), st.booleans()), min_size=1, max_size=7),
    st.integers(1, 7),
)
def test_majority_is_the_mean_over_all_subsets(responses, k):
    answers, correct = [answer for answer, _ in responses], [right for _, right in responses]
    k = min(k, len(answers))
    tolerance = 1e-12 if k == len(answers) else 5 * 0.5 / np.sqrt(4000)
    got = majority_at_k([answers], [correct], k, num_subsets=4000)[0]
    assert got == pytest.approx(enumerated(answers, correct, k), abs=tolerance)


def test_the_seed_determines_the_subsets():
    answers, correct = [["1", "2", "3", "1", "2"]], [[True, False, False, True, False]]
    first, again, other = (majority_at_k(answers, correct, 3, num_subsets=50, seed=seed)[0] for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([["1", "2"]], [[True, False]], 3), "k=3 must be a whole number from 1 to the number of responses, 2"),
        (([["1", "2"]], [[True]], 1), r"a prompt has 2 answers and correct of shape \(1,\)"),
        (([["1"]], [], 1), "answers has 1 prompts and correct has 0"),
    ],
)
def test_impossible_votes(arguments, message):
    with pytest.raises(ValueError, match=message):
        majority_at_k(*arguments)


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_intervals_match_scipy(method):
    values = np.random.default_rng(1).beta(0.5, 1.5, size=30)
    got = bootstrap_mean(values, method=method, confidence=0.9, seed=3)
    options = {"confidence_level": 0.9, "method": method, "n_resamples": 9999, "rng": np.random.default_rng(3)}
    want = stats.bootstrap((values,), np.mean, **options).confidence_interval
    assert (got.mean, got.low, got.high) == (values.mean(), want.low, want.high)
    assert got.low < got.mean < got.high


def test_intervals_have_their_stated_coverage():
    """In 300 samples of 40 prompts, about 95% of the intervals contain the true mean, 0.25."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        interval = bootstrap_mean(rng.beta(0.5, 1.5, size=40), num_resamples=999)
        hits += interval.low <= 0.25 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98


def test_intervals_without_spread():
    one = bootstrap_mean([0.5])
    assert one.mean == 0.5 and np.isnan([one.low, one.high]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy would warn of a degenerate distribution
        same = bootstrap_mean([0.5, 0.5, 0.5])
        rounded = bootstrap_mean([0.1 + 0.2, 0.3, 0.3])
    assert same.mean == 0.5 and np.isnan([same.low, same.high]).all()
    assert np.isnan([rounded.low, rounded.high]).all(), "0.1 + 0.2 is 0.3 up to rounding"


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize("prompts", [1, 2, 30, 500])
def test_shares_of_0_and_1_have_a_clopper_pearson_interval(prompts, confidence):
    for share, successes in ((1.0, prompts), (0.0, 0)):
        got = mean_share([share] * prompts, confidence=confidence)
        want = stats.binomtest(successes, prompts).proportion_ci(confidence, method="exact")
        assert got.mean == share
        assert (got.low, got.high) == pytest.approx((want.low, want.high), rel=1e-9)


def test_other_shares_have_a_bootstrap_interval():
    shares = np.random.default_rng(1).binomial(8, 0.4, size=30) / 8
    assert mean_share(shares, confidence=0.9) == bootstrap_mean(shares, confidence=0.9)
    between = mean_share([0.5] * 30)
    assert between.mean == 0.5 and np.isnan([between.low, between.high]).all()
    with pytest.raises(ValueError, match=r"shares from -0.5 to 1.0 must lie in \[0, 1\]"):
        mean_share([-0.5, 1.0])


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, r"values of shape \(0,\) must be finite numbers, one per prompt and at least one"),
        ([0.1, float("nan")], {}, "must be finite numbers"),
        ([[0.1]], {}, r"values of shape \(1, 1\) must be"),
        ([0.1, 0.2], {"confidence": 95}, r"confidence=95 must lie in \(0, 1\)"),
    ],
)
def test_impossible_intervals(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values, **options)

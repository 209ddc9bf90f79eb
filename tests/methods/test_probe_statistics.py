"""The statistics of the probe, by hand and against exact gradients of a policy that can be enumerated."""

import numpy as np
import pytest
import torch

from canon_trl.evaluation.estimates import Estimate
from canon_trl.evaluation.probing.estimator_statistics import describe_estimators, leave_one_out
from canon_trl.evaluation.probing.metric_statistics import best_of, describe_metric, sign_of
from canon_trl.evaluation.probing.prompt_statistics import describe_prompts, share_with_spread
from canon_trl.evaluation.probing.resampling import estimate_of, pair_mean, resampled_counts

NAN = float("nan")


def test_the_mean_over_pairs_by_hand():
    products = np.array([[9.0, 1.0, 2.0], [3.0, 9.0, 4.0], [5.0, 6.0, 9.0]])
    assert pair_mean(products, np.ones((1, 3))).tolist() == pytest.approx([21 / 6])
    # prompt 0 twice and prompt 1 once: the pairs (0, 1) and (1, 0), twice each
    assert pair_mean(products, np.array([[2.0, 1.0, 0.0]])).tolist() == pytest.approx([(2 * 1 + 2 * 3) / 4])
    assert np.isnan(pair_mean(products, np.array([[3.0, 0.0, 0.0]]))).all()


def test_the_mean_over_pairs_is_free_of_noise():
    rng = np.random.default_rng(0)
    noisy = rng.normal(size=(2000, 20, 5)) + 1.0  # 20 prompts, |E|^2 = 5 in 5 dimensions; with themselves 10
    found = [pair_mean(each @ each.T, np.ones((1, 20)))[0] for each in noisy]
    assert np.mean(found) == pytest.approx(5, abs=4 * np.std(found) / 2000**0.5)


def test_bootstrap_of_a_mean():
    values, counts = np.arange(100.0), resampled_counts(100)
    assert counts.shape == (1001, 100) and (counts[0] == 1).all() and (counts.sum(axis=1) == 100).all()
    found = estimate_of(counts @ values / 100, confidence=0.95)
    assert found.mean == 49.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.1)
    same = estimate_of(counts.sum(axis=1), confidence=0.95)
    assert same.mean == 100 and np.isnan([same.low, same.high]).all()


def test_a_metric_by_hand():
    found = describe_metric([[1, 1, 0, 0], [0, 0, 0, 0]], [[4, 3, 2, 1], [1, 2, 3, 4]])
    assert found.gap.mean == 0.5  # 1 and 0
    assert found.higher_wins == 0.75  # a win and a tie
    assert found.ceiling_gap.mean == 0.5
    assert found.correlation.mean == pytest.approx(2 / (1 * 10) ** 0.5)
    assert found.explained.mean == 1.0
    assert found.num_groups == 2 and not found.trap


def test_chance_explains_nothing():
    # gap 0.5, variance 0.5 in the half of two: its noise is 0.25, which is all of the squared gap
    assert describe_metric([[1, 0, 0, 0]], [[2, 2, 1, 1]]).explained.mean == 0.0
    rng = np.random.default_rng(0)
    found = describe_metric(rng.integers(0, 2, (500, 16)), rng.random((500, 16)))
    assert abs(found.explained.mean) < 0.01 and sign_of(found.gap) == 0 and sign_of(found.correlation) == 0


def test_a_gap_whose_sign_depends_on_the_prompt():
    found = describe_metric([[1, 1, 0, 0], [0, 0, 1, 1]] * 20, [[4, 3, 2, 1]] * 40)
    assert found.gap.mean == 0 and found.higher_wins == 0.5
    assert found.gap_deviation == pytest.approx(np.std([1, -1] * 20, ddof=1))


def test_unscored_responses_and_odd_groups():
    # the group of three has one response in its lower half, so the ceiling compares one with one
    found = describe_metric([[1, NAN, 0, 0], [NAN, NAN, NAN, 1]], [[9, 8, 2, 1], [1, 2, 3, 4]])
    assert found.num_groups == 1
    assert found.gap.mean == 0.5 and found.ceiling_gap.mean == 0.5
    assert np.isnan(found.explained.mean)
    with pytest.raises(ValueError, match="no prompt has two responses with a reward"):
        describe_metric([[1, NAN]], [[1, 2]])
    with pytest.raises(ValueError, match="must have the same shape"):
        describe_metric([[1, 0]], [[1, 2, 3]])


def test_the_best_of_a_subset():
    assert best_of([3, 1, 2], 2) == pytest.approx((3 + 3 + 2) / 3)
    assert best_of([3, 1, 2], 3) == 3 and best_of([3, 1, 2], 1) == 2
    assert best_of([1, 0, 0, 0], 2) == pytest.approx(0.5)  # pass@2


def test_a_trap():
    # The lower half is all right for 60% of the prompts; the higher half has one right response for each of them.
    rewards = [[1, 0, 1, 1]] * 240 + [[1, 0, 0, 0]] * 160
    found = describe_metric(rewards, [[4, 3, 2, 1]] * 400)
    assert found.gap.mean == pytest.approx(-0.1) and found.ceiling_gap.mean == pytest.approx(0.4)
    assert found.trap
    assert not describe_metric(rewards[:240], [[4, 3, 2, 1]] * 240).trap  # the ceilings do not differ


def test_the_sign_of_an_estimate():
    assert [sign_of(Estimate(0, *each)) for each in ((0.1, 1), (-1, -0.1), (-1, 1), (NAN, NAN))] == [1, -1, 0, 0]


def test_prompts_by_hand():
    rewards = [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [NAN, 1, 0, 0], [NAN] * 4]
    found = describe_prompts(rewards, np.full((5, 4), 3), [[True] + [False] * 3] * 5)
    assert (found.num_prompts, found.num_samples, found.unscored_prompts) == (4, 4, 1)
    assert (found.with_spread, found.always_right, found.never_right) == (2, 1, 1)
    assert found.accuracy.mean == pytest.approx((0.5 + 1 + 0 + 0.25) / 4)
    assert found.reward == pytest.approx(7 / 15)
    assert found.histogram == [1, 0, 1, 0, 0, 1, 0, 0, 0, 1]
    assert {k: each.mean for k, each in found.pass_at_k.items()} == pytest.approx(
        {1: 7 / 16, 2: (5 / 6 + 1 + 0 + 1 / 2) / 4, 4: 3 / 4}
    )
    assert found.groups_with_spread == pytest.approx({2: (4 / 6 + 0 + 0 + 1 / 2) / 4, 4: 2 / 4})
    assert found.truncated == 0.25 and found.length == 3
    with pytest.raises(ValueError, match="no prompt has a scored response"):
        describe_prompts([[NAN, NAN]], [[1, 1]], [[False, False]])


def test_groups_with_spread_by_hand():
    # 2 of 4 right: one pair of 6 is all right, one is all wrong
    assert share_with_spread(4, [2], 2) == pytest.approx(4 / 6)
    assert share_with_spread(4, [4, 0], 2) == 0


def test_leave_one_out_by_hand():
    assert leave_one_out([[1, 0, 0], [1, NAN, 0], [NAN, NAN, 1]]).tolist() == [[1, -0.5, -0.5], [1, 0, -1], [0, 0, 0]]


SMALL = {
    "scores": np.array([[[1.0], [-1.0]], [[2.0], [-2.0]]]),
    "rewards": [[1, 0], [1, 0]],
    "lengths": [[2, 1], [1, 1]],
    "surprisals": [[2, 1], [1, 1]],  # one nat per token, so every response has the same entropy
}


def test_estimators_by_hand():
    advantages = {"dr_grpo": [[0.5, -0.5]] * 2, "opposite": [[-1, 1]] * 2, "first": [[0.5, -0.5], [0, 0]]}
    truth, found = describe_estimators(**SMALL, advantages=advantages, prompts_per_step=1)
    # Dr.GRPO's gradients are 0.5 and 1; those of the reward 1 and 2
    assert truth.signal.mean == pytest.approx(2 / 2.5)
    one = found["dr_grpo"]
    assert (one.groups_with_signal, one.magnitude) == (1, 1)
    assert one.signal.mean == pytest.approx(0.5 / 0.625)
    assert one.snr.mean == pytest.approx(0.5 / 0.125)
    assert one.cosine.mean == pytest.approx(1) and one.gain.mean == pytest.approx(1)
    # the gradient of the length is 1 and 0, so that along Dr.GRPO's is 0.5 * 1 / 2, that of the reward 1
    assert one.length.mean == pytest.approx(0.01 * 0.5)
    assert one.entropy.mean == pytest.approx(0)
    assert found["opposite"].cosine.mean == -1 and found["opposite"].gain.mean == pytest.approx(-1)
    assert found["opposite"].magnitude == 2
    assert found["opposite"].length.mean == pytest.approx(-0.01 * 0.5)
    assert found["first"].groups_with_signal == 0.5
    assert found["first"].signal.mean == 0  # no pair of prompts has a direction in common
    assert np.isnan(one.gain.low)  # two prompts are too few


def test_noise_shrinks_with_the_prompts_per_step():
    advantages = {"dr_grpo": [[0.5, -0.5]] * 2}
    snr = [
        describe_estimators(**SMALL, advantages=advantages, prompts_per_step=count)[1]["dr_grpo"].snr.mean
        for count in (1, 8)
    ]
    assert snr[1] == pytest.approx(8 * snr[0])


def test_responses_of_equal_weight():
    given = SMALL | {"lengths": [[2, 2], [4, 4]], "surprisals": [[1, 1], [1, 1]]}
    advantages = {"dr_grpo": [[0.5, -0.5]] * 2}
    _, found = describe_estimators(**given, advantages=advantages, prompts_per_step=1, per_token=False)
    assert found["dr_grpo"].signal.mean == pytest.approx(1)  # 0.5 / 2 and 1 / 4 are equal


def test_directions_are_those_of_exact_gradients():
    lengths, rewards = torch.tensor([2.0, 5.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    logits = torch.tensor([0.5, 0.25, 0.25]).log().requires_grad_()
    probs = logits.softmax(0)
    numbers = {
        "reward": (probs * rewards).sum(),
        "length": (probs * lengths).sum(),
        "entropy": -(probs * probs.log()).sum() / (probs * lengths).sum(),
    }
    exact = {name: torch.autograd.grad(value, logits, retain_graph=True)[0] for name, value in numbers.items()}
    drawn = torch.tensor([0, 0, 1, 2])  # in exact proportion, for each of two equal prompts
    probs = probs.detach()
    scores = (torch.eye(3) - probs)[drawn].expand(2, 4, 3)
    given = {"rewards": rewards, "lengths": lengths, "surprisals": -probs.log()}
    given = {name: values[drawn].expand(2, 4) for name, values in given.items()}
    _, found = describe_estimators(
        scores,
        **given,
        advantages={"dr_grpo": given["rewards"] - given["rewards"].mean(dim=1, keepdim=True)},
        prompts_per_step=8,
    )
    step = exact["reward"]
    expected = {name: float(step @ exact[name] / (step @ step)) for name in ("length", "entropy")}
    assert found["dr_grpo"].length.mean == pytest.approx(0.01 * expected["length"], rel=1e-5)
    assert found["dr_grpo"].entropy.mean == pytest.approx(0.01 * expected["entropy"], rel=1e-5)


def test_two_prompts_with_two_responses_are_needed():
    given = {name: np.asarray(values)[:1] for name, values in SMALL.items()}
    with pytest.raises(ValueError, match="1 prompts with 2 responses each; at least 2 of both are needed"):
        describe_estimators(**given, advantages={"dr_grpo": [[0.5, -0.5]]}, prompts_per_step=1)

"""The entropy law R = -a * exp(H) + b."""

import math

import numpy as np
import pytest

from canon_trl.evaluation import fit_entropy_law, save_entropy_law


def test_an_exact_law_is_found():
    entropy = [0.1, 0.5, 1.0, 1.5]
    law = fit_entropy_law(entropy, [0.9 - 0.2 * math.exp(value) for value in entropy])
    assert (law.a, law.b, law.ceiling) == pytest.approx((0.2, 0.9, 0.7))
    assert law.residual == pytest.approx(0, abs=1e-12)
    assert law.accuracy(0.5) == pytest.approx(0.9 - 0.2 * math.exp(0.5))


def test_least_squares_by_hand():
    # x = exp(H) = 1, 2, 3 and R = 1, 0, 0: slope -1/2, mean 1/3 at x = 2, so R = 4/3 - x/2; residuals 1/6, -1/3, 1/6
    law = fit_entropy_law([0.0, math.log(2), math.log(3)], [1.0, 0.0, 0.0])
    assert (law.a, law.b) == pytest.approx((0.5, 4 / 3))
    assert law.residual == pytest.approx(math.sqrt((1 / 36 + 1 / 9 + 1 / 36) / 3))


@pytest.mark.parametrize(
    ("entropy", "accuracy", "message"),
    [
        ([0.1, 0.2], [0.5, 0.6], "2 pairs with 2 different entropies"),
        ([0.1, 0.1, 0.1], [0.5, 0.6, 0.7], "3 pairs with 1 different entropies"),
        ([0.3, 0.1 + 0.2, 0.3], [0.5, 0.6, 0.7], "3 pairs with 2 different entropies"),  # two only by rounding
        ([0.1, 0.2, 0.3], [0.5, 0.6], r"entropy \(3,\) and accuracy \(2,\)"),
        ([0.1, 0.2, float("nan")], [0.5, 0.6, 0.7], "must be finite"),
    ],
)
def test_bad_data(entropy, accuracy, message):
    with pytest.raises(ValueError, match=message):
        fit_entropy_law(entropy, accuracy)


def test_fit_from_a_training_log(tmp_path):
    steps = [
        {"step": step, "entropy": 1 / step, "rewards/accuracy/mean": 0.8 - 0.1 * np.exp(1 / step)}
        for step in (1, 2, 4)
    ]
    held_out = [{"step": step, "eval_entropy": 1 / step, "eval_rewards/accuracy/mean": 0.7} for step in (1, 2)]
    law = save_entropy_law(steps + held_out, tmp_path / "law.png", accuracy_reward="accuracy")
    assert (law.a, law.b, law.points) == (pytest.approx(0.1), pytest.approx(0.8), 3)
    assert (tmp_path / "law.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    more = [*held_out, {"step": 4, "eval_entropy": 0.25, "eval_rewards/accuracy/mean": 0.7}]
    law = save_entropy_law(steps + more, tmp_path / "law.png", accuracy_reward="accuracy")
    assert (law.a, law.b) == (pytest.approx(0, abs=1e-12), pytest.approx(0.7))

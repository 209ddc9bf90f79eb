"""The adaptive upper clip: a case by hand, its bounds, its target, and resuming."""

import json
import math

import pytest

from canon_trl.controllers import CONTROLLERS, AdaptiveClip
from canon_trl.controllers.protocol import Run

MAI = 0.6 / (1 - 0.6)  # epsilon_high of the interval [1 - 0.6, 1 / (1 - 0.6)]


def test_a_case_by_hand():
    """k, with H* 0.3, step 0.25 and at most 0.5: 0.25, 0.5, 0.5, 0.25, 0, 0, and unchanged at the target."""
    steered = AdaptiveClip(MAI, most=0.5)
    clips = [steered.update({"entropy": entropy}) for entropy in (0.1, 0.29, 0.0, 0.31, 0.4, 5.0, 0.3)]
    assert clips == pytest.approx([1.75, 2.0, 2.0, 1.75, 1.5, 1.5, 1.5])
    assert AdaptiveClip.steers == "epsilon_high"


def test_the_reports_values_are_the_defaults():
    """The ratio is at most 1 / (1 - 0.6) + 2.5 = 5, and k gets there in 10 steps."""
    steered = AdaptiveClip(MAI)
    clips = [1 + steered.update({"entropy": 0.1}) for _ in range(11)]
    assert clips[-3:] == pytest.approx([4.75, 5.0, 5.0])


@pytest.mark.parametrize("measured", [{}, {"entropy": math.nan}])
def test_a_step_without_an_entropy_changes_nothing(measured):
    steered = AdaptiveClip(0.28, step=0.02)
    assert steered.update({"entropy": 0.1}) == steered.update(measured) == pytest.approx(0.3)


def test_resuming_at_every_update():
    whole = AdaptiveClip(0.28, step=0.07, most=0.2)
    for entropy in (0.1, 0.2, 0.5, 0.1, 0.1, 0.1, 0.7):
        resumed = AdaptiveClip(0.28, step=0.07, most=0.2)
        resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        assert resumed.update({"entropy": entropy}) == whole.update({"entropy": entropy})
        assert resumed.state_dict() == whole.state_dict()


def test_it_starts_from_the_value_in_the_config():
    made = CONTROLLERS["adaptive_clip"](Run(start=0.28, temperature=1.0, vocab_size=100, total_steps=10))
    assert made.update({"entropy": 0.3}) == 0.28


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_entropy": 0.0}, r"target_entropy=0\.0 must lie in \(0, inf\)"),
        ({"step": 0.0}, r"step=0\.0 must lie in \(0, 1e6\]"),
        ({"most": -1.0}, r"most=-1\.0 must lie in \[0, 1e6\]"),
    ],
)
def test_invalid_options(options, words):
    with pytest.raises(ValueError, match=words):
        CONTROLLERS["adaptive_clip"].with_options(options, where="")

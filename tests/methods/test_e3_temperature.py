"""E3's temperature scheduler: numbers of the released code, bad options, and resuming."""

import json
import math

import pytest
from golden_cases import cases

from canon_trl.controllers.e3_temperature import E3Temperature

GOLDEN = cases("methods_e3", kind="temperature")


def controller(inputs):
    annealing = inputs.get("enable_annealing", False)
    return E3Temperature(
        vocab_size=inputs["vocab_size"],
        temperature=inputs["init_temperature"],
        target_entropy=inputs.get("target_entropy"),
        init_steps=inputs.get("init_steps", 1),
        annealing_ratio=inputs.get("annealing_ratio", 0.4) if annealing else None,
        annealing_factor=inputs.get("annealing_factor", 0.9),
        total_steps=inputs.get("max_steps"),
    )


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_numbers_match_the_released_code(case):
    steered = controller(case["inputs"])
    expected = case["expected"]
    for entropy, temperature, target in zip(
        case["inputs"]["entropies"], expected["temperature"], expected["target_entropy"], strict=True
    ):
        assert steered.update({"entropy": entropy}) == pytest.approx(temperature, rel=1e-7)
        assert steered.target_entropy == (target if target is None else pytest.approx(target, rel=1e-7))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_resuming_at_every_update(case):
    whole = controller(case["inputs"])
    for entropy in case["inputs"]["entropies"]:
        resumed = controller(case["inputs"])
        resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        assert resumed.update({"entropy": entropy}) == whole.update({"entropy": entropy})
        assert resumed.state_dict() == whole.state_dict()


def test_a_case_by_hand():
    """The scale is ln V + ln ln V, e + 1 for V = e^e; 15 is the next whole number below."""
    steered = E3Temperature(vocab_size=15, temperature=0.8, target_entropy=0.5, init_steps=0)
    scale = math.log(15) + math.log(math.log(15))
    assert steered.update({"entropy": 0.25}) == pytest.approx(0.8 * (1 + 0.8 * math.log(2) / scale))
    assert E3Temperature.steers == "temperature"


def test_entropy_on_target_changes_nothing():
    steered = E3Temperature(vocab_size=100, target_entropy=0.5, init_steps=0)
    assert [steered.update({"entropy": 0.5}) for _ in range(3)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("entropy", [0.0, -0.1, math.nan, math.inf])
def test_entropies_that_are_not_positive_are_skipped(entropy):
    steered = E3Temperature(vocab_size=100)
    assert steered.update({"entropy": entropy}) == 1.0
    steered.update({"entropy": 0.4})
    steered.update({"entropy": 0.3})
    before = steered.state_dict()
    assert steered.update({"entropy": entropy}) == before["temperature"] > 1
    assert steered.state_dict() == before
    assert steered.target_entropy == 0.4


def test_the_target_stays_at_its_minimum_after_annealing():
    steered = E3Temperature(
        vocab_size=100, target_entropy=1.0, init_steps=0, annealing_ratio=0.5, annealing_factor=0.5, total_steps=4
    )
    targets = []
    for _ in range(6):
        steered.update({"entropy": 1.0})
        targets.append(steered.target_entropy)
    assert targets == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.5, 0.5])


def test_a_run_too_short_to_anneal_keeps_its_target():
    steered = E3Temperature(vocab_size=100, target_entropy=1.0, annealing_ratio=0.4, total_steps=2)
    for _ in range(3):
        steered.update({"entropy": 1.0})
    assert steered.target_entropy == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"annealing_ratio": 0.4}, r"annealing_ratio=0\.4 needs total_steps"),
        ({"init_steps": 0}, "init_steps=0 needs target_entropy"),
        (
            {"target_entropy": 4.7},
            r"target_entropy=4\.7 cannot be reached: the entropy of 100 tokens is at most 4\.605",
        ),
    ],
)
def test_options_that_cannot_be_honoured(options, words):
    with pytest.raises(ValueError, match=words):
        E3Temperature(vocab_size=100, **options)

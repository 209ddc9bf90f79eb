"""Skywork-OR1's entropy bonus: TRL's own options, set by a preset, compared with the authors' controller."""

import pytest
from golden_cases import cases
from toy import ONE_ROLLOUT, assert_resumes, logged, make_trainer

from canon_trl import CANONConfig
from canon_trl.config.canon import PRESETS_OF_TRL

PRESET = PRESETS_OF_TRL["skywork_or1_entropy"]
GOLDEN = cases("methods_entropy_controller", adaptive=True)


def coefficients(entropies, start, *, target, delta, low, high):
    """The coefficient after every update, by the rule of the authors' code."""
    found = []
    for entropy in entropies:
        start = min(max(start + (delta if entropy < target else -delta), low), high)
        found.append(start)
    return found


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_the_rule_matches_the_released_code(case):
    inputs = case["inputs"]
    options = {"low": inputs["min_coef"], "high": inputs["max_coef"], "target": inputs["target"]}
    got = coefficients(inputs["entropies"], inputs["init_coef"], delta=inputs["delta"], **options)
    assert got == pytest.approx(case["expected"]["coefficient"], rel=1e-7, abs=1e-8)
    assert [int(entropy < inputs["target"]) for entropy in inputs["entropies"]] == case["expected"]["enabled"]


def test_the_preset_has_the_values_of_the_released_script():
    made = CANONConfig.from_preset("skywork_or1_entropy", output_dir="out", bf16=False, advantage_estimator="grpo")
    scripts = GOLDEN[0]["inputs"]
    assert made.use_adaptive_entropy
    assert made.advantage_estimator == "grpo"
    assert made.entropy_coef == scripts["init_coef"]
    assert made.entropy_coef_min == scripts["min_coef"]
    assert made.entropy_coef_max == scripts["max_coef"]
    assert made.entropy_coef_delta == scripts["delta"]
    assert made.entropy_target == scripts["target"]


@pytest.mark.parametrize(
    ("target", "start", "changes"),
    [(9.0, 0.0, [1e-4, 2e-4, 3e-4]), (9.0, 0.0049, [0.005] * 3), (1e-3, 1.5e-4, [5e-5, 0.0, 0.0])],
    ids=["below", "at the maximum", "above"],
)
def test_trl_follows_the_rule(tmp_path, target, start, changes):
    trainer = make_trainer(tmp_path, **(PRESET | {"entropy_target": target, "entropy_coef": start, "max_steps": 3}))
    trainer.train()
    entries = logged(trainer)
    limits = {"delta": 1e-4, "low": 0.0, "high": 0.005}
    want = coefficients([entry["entropy"] for entry in entries], start, target=target, **limits)
    assert want == pytest.approx(changes)
    assert [entry["entropy_coef"] for entry in entries] == pytest.approx(want)


def test_at_the_target_trl_raises_the_coefficient(tmp_path):
    """The authors' code lowers it there, see the golden case of that name."""
    first = make_trainer(tmp_path / "first", **(PRESET | ONE_ROLLOUT))
    first.train()
    at_target = {"entropy_target": first._last_world_entropy, "entropy_coef": 0.002}
    second = make_trainer(tmp_path / "second", **(PRESET | ONE_ROLLOUT | at_target))
    second.train()
    assert second._last_world_entropy == first._last_world_entropy
    assert second.entropy_coef == pytest.approx(0.0021)


def test_the_coefficient_resumes(tmp_path):
    whole, *_ = assert_resumes(make_trainer, tmp_path, **(PRESET | {"entropy_target": 9.0}))
    assert [entry["entropy_coef"] for entry in logged(whole)] == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4])

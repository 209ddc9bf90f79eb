"""What is loaded by an import: nothing by the package's name, torch alone by the folders of the methods."""

import subprocess
import sys

import pytest

import canon_trl

HEAVY = ("torch", "trl", "transformers", "accelerate", "datasets", "peft", "vllm")
METHODS = ("policy_rewards", "advantages", "token_advantages", "policy_losses", "loss_terms", "controllers")
TORCH_ONLY = (*METHODS, "method", "metrics", "options", "paper", "rollout", "schedules", "selection", "tokens")

LOADED = "import sys, {modules}; print(*(name for name in {heavy} if name in sys.modules))"


def loaded_by(*modules: str) -> set[str]:
    """Which of the heavy libraries a fresh process has loaded after importing these modules."""
    code = LOADED.format(modules=", ".join(modules), heavy=HEAVY)
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split())


def test_the_package_loads_nothing():
    assert loaded_by("canon_trl") == set()


def test_the_methods_load_torch_alone():
    assert loaded_by(*(f"canon_trl.{module}" for module in TORCH_ONLY)) == {"torch"}


def test_every_public_name_is_there():
    assert set(canon_trl.__all__) <= set(dir(canon_trl))
    assert {*canon_trl.MODULES, "__version__"} == set(canon_trl.__all__)
    for name in canon_trl.__all__:
        assert getattr(canon_trl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'CANONTrainr'"):
        canon_trl.CANONTrainr  # noqa: B018


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "from canon_trl.advantages import get_estimator",
            "get_estimator has gone; use canon_trl.adva",
        ),
        ("from canon_trl.advantages import OnRollout", "OnRollout has gone; use canon_trl.method.Method"),
        ("from canon_trl.policy_losses import ClipCov", r"ClipCov has gone; use POLICY_LOSSES\['clip_cov'\]"),
        ("from canon_trl.rewards import timed", "is now canon_trl.guards; import timed from there"),
    ],
)
def test_a_name_that_went_names_its_successor(code, message):
    with pytest.raises(ImportError, match=message):
        exec(code)

"""Imports: the package itself loads no library, and the method folders load only torch."""

import subprocess
import sys

import pytest

import canon_trl

HEAVY = ("torch", "trl", "transformers", "accelerate", "datasets", "peft", "vllm")
METHODS = ("policy_rewards", "advantages", "token_advantages", "policy_losses", "loss_terms", "controllers")
TORCH_ONLY = (*METHODS, "method", "metrics", "options", "paper", "rollout", "schedules", "selection", "tokens")

LOADED = "import sys, {modules}; {then}; print(*(name for name in {heavy} if name in sys.modules))"


def loaded_by(*modules: str, then: str = "") -> set[str]:
    """The heavy libraries that a fresh process has loaded after it imported these modules and ran a statement."""
    code = LOADED.format(modules=", ".join(modules), heavy=HEAVY, then=then or "None")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_no_library():
    assert loaded_by("canon_trl") == set()


def test_importing_the_methods_loads_only_torch():
    assert loaded_by(*(f"canon_trl.{module}" for module in TORCH_ONLY)) == {"torch"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["recipes"], ["recipes", "show", "arithmetic"], ["recipes", "--help"]]
)
def test_commands_that_load_no_library(arguments):
    assert loaded_by("canon_trl.cli", then=f"canon_trl.cli.main({arguments})") == set()


def test_a_misspelt_command_loads_no_library():
    code = "import sys, canon_trl.cli\ntry: canon_trl.cli.main(['trian'])\n"
    code += f"except SystemExit: print(*(name for name in {HEAVY} if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "\n"


def test_public_names():
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
            "get_estimator was removed; use canon_trl.adva",
        ),
        ("from canon_trl.advantages import OnRollout", "OnRollout was removed; use canon_trl.method.Method"),
        ("from canon_trl.policy_losses import ClipCov", r"ClipCov was removed; use POLICY_LOSSES\['clip_cov'\]"),
        ("from canon_trl.rewards import timed", "was renamed to canon_trl.guards; import timed from there"),
    ],
)
def test_removed_names_name_their_successor(code, message):
    with pytest.raises(ImportError, match=message):
        exec(code)

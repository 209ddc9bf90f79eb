"""The wheel, in an environment outside the checkout, trains, evaluates and probes on every supported Python.

A Python that has the dependencies lends them to that environment, where only canon_trl comes from the wheel. By
default this is the Python that runs the tests. Another one would download gigabytes, so it takes part only if
CANON_TRL_WHEEL_PYTHONS="3.12 3.13" names its version or its path, as in the workflow that publishes a release.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSIONS = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
ASKED = os.environ.get("CANON_TRL_WHEEL_PYTHONS", "").split()
LENDS = "import sys, sysconfig, trl; print(*sys.version_info[:2], sep='.'); print(sysconfig.get_path('purelib'))"
SMALL = ["--num_prompts", "8", "--num_generations", "4", "--per_device_train_batch_size", "16"]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Return what the command prints. It sees neither the checkout nor the network's models."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
    return done.stdout


def works(python: str | Path, code: str) -> list[str]:
    """The lines that a Python prints for this code; empty if there is no such Python, or it fails."""
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd="/")
    except OSError:
        return []
    return done.stdout.split() if done.returncode == 0 else []


def interpreter(version: str) -> str:
    """Find the Python of this version, or skip the test."""
    is_this = f"import sys; print(sys.version_info[:2] == {tuple(map(int, version.split('.')))})"
    paths = [sys.executable] if works(sys.executable, LENDS) else []
    for path in [*paths, *(each for each in ASKED if "/" in each)]:
        if works(path, is_this) == ["True"]:
            return path
    if version not in ASKED:
        pytest.skip(f"CANON_TRL_WHEEL_PYTHONS does not name {version}, which would download its packages")
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for path in [shutil.which(f"python{version}"), *of_pyenv]:
        if path is not None and works(path, is_this) == ["True"]:
            return str(path)
    pytest.skip(f"python{version} is neither on PATH nor in pyenv")


def install(python: str, wheel: Path, folder: Path) -> Path:
    """Install the wheel in a new environment and return the folder of its programs."""
    lent = works(python, LENDS)
    run(python, "-m", "venv", *(["--without-pip"] if lent else []), folder)
    own = folder / "bin" / "python"
    if lent:
        (site_packages,) = works(own, "import sysconfig; print(sysconfig.get_path('purelib'))")
        # A folder named in a .pth file comes after the environment's own, and its .pth files are not read.
        (Path(site_packages) / "lent.pth").write_text(lent[1] + "\n")
        run(python, "-m", "pip", "--python", own, "install", "--no-deps", "--no-index", wheel)
    else:
        run(own, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    return own.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_trains_evaluates_and_probes(version, wheel, tmp_path):
    programs = install(interpreter(version), wheel, tmp_path / "environment")
    python, outside = programs / "python", tmp_path / "outside"
    outside.mkdir()
    facts = "import canon_trl, sys; print(canon_trl.__file__, canon_trl.__version__, *sys.version_info[:2])"
    file, number, *found = run(python, "-c", facts, cwd=outside).split()
    assert Path(file).is_relative_to(tmp_path) and number == PROJECT["version"] and ".".join(found) == version

    command = programs / "canon-trl"
    assert run(command, "--help", cwd=outside) == run(python, "-m", "canon_trl", "--help", cwd=outside)
    limited = ["--task_train_prompts", "64", "--task_eval_prompts", "16"]
    run(command, "train", "--max_steps", "2", *limited, cwd=outside)
    written = {path.name for path in (outside / "outputs" / "arithmetic").iterdir()}
    assert written >= {"model.safetensors", "metrics.csv", "curves.png", "README.md"}
    trained = ["--model_name_or_path", "outputs/arithmetic"]
    run(command, "evaluate", *trained, *limited[2:], "--num_samples", "2", "--pass_at_k", "1", "2", cwd=outside)
    assert (outside / "outputs" / "arithmetic_evaluation" / "summary.md").exists()
    run(
        command,
        "probe",
        "--task",
        "arithmetic",
        *SMALL,
        "--target_entropy",
        "0",
        "--probe_dir",
        "probed",
        cwd=outside,
    )
    assert (outside / "probed" / "probe.json").exists()

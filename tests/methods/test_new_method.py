"""`canon-trl new-method` makes skeletons that work, for every stage, and rejects what it cannot make."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from canon_trl.cli import new_method

ROOT = Path(__file__).parents[2]
NAMES = {stage: f"my_{stage}" for stage in new_method.PLACES}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the parts of the repository that the command and `docs/generate.py` read."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("canon_trl", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*_model", "*.png"))
    for name in ("README.md", "CHANGELOG.md", "pyproject.toml"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "tests" / "methods").mkdir(parents=True)
    return folder


def run(folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, *command], **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_stage_has_a_skeleton():
    assert {path.stem for path in new_method.SKELETONS.iterdir()} == set(new_method.PLACES)


@pytest.mark.timeout(900)
def test_the_skeletons_of_all_stages_work(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout / "docs")  # any folder of the checkout
    for stage, name in NAMES.items():
        written = {path.relative_to(checkout).as_posix() for path in new_method.main([name, "--stage", stage])}
        place = new_method.PLACES[stage]
        listing = f"canon_trl/{place.file}"
        file = f"{Path(listing).parent}/{name}.py" if place.function else "canon_trl/config/canon.py"
        assert written == {listing, file, f"tests/methods/test_{name}.py", "CHANGELOG.md"}
        assert all(f"  {path}\n" in capsys.readouterr().out for path in [f"tests/methods/test_{name}.py"])
    assert re.findall(r"^- `(my_\w+)`: TODO\.$", (checkout / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[
        ::-1
    ] == [*NAMES.values()]
    config = (checkout / "canon_trl" / "config" / "canon.py").read_text()
    assert '`"random"`, `"my_metric"`' in " ".join(config.split())
    assert '`"cosine_intra_to_inter"`, `"my_schedule"`.' in " ".join(config.split())

    run(checkout, "-m", "ruff", "check", "canon_trl", "tests")
    run(checkout, "-m", "ruff", "format", "--check", "canon_trl", "tests")
    run(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/methods")
    run(checkout, "docs/generate.py")
    readme = (checkout / "README.md").read_text()
    assert all(f"| `{name}` |" in readme for stage, name in NAMES.items() if new_method.PLACES[stage].function)


@pytest.mark.parametrize(
    ("name", "stage", "message"),
    [
        ("Range", "metric", r"name 'Range' must be an identifier of small letters"),
        ("lambda", "metric", r"must be an identifier"),
        ("2nd", "metric", r"must be an identifier"),
        ("fresh", "loss_terms", r"--stage 'loss_terms' is unknown \(did you mean 'loss_term'\?\); choose one of"),
        ("opo", "loss_term", r"name 'opo' exists already, in canon_trl/advantages/__init__\.py"),
        ("groups", "loss_term", r"name 'groups' exists already, as canon_trl/advantages/groups\.py"),
        ("entropy", "metric", r"name 'entropy' exists already, in canon_trl/metrics\.py"),
        ("random", "metric", r"name 'random' exists already, in canon_trl/metrics\.py"),
        ("disco", "metric", r"name 'disco' exists already, in canon_trl/policy_losses/__init__\.py"),
        ("constant", "schedule", r"name 'constant' exists already, in canon_trl/schedules\.py"),
        ("stages", "metric", r"name 'stages' exists already, as the test test_stages\.py"),
    ],
)
def test_what_it_cannot_make(name, stage, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=message):
        new_method.main([name, "--stage", stage])


def test_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"is not in a checkout of canon_trl"):
        new_method.main(["fresh", "--stage", "metric"])


@pytest.mark.parametrize("before", ["", "### Changed\n\n- b\n\n"])
def test_a_changelog_without_additions(before):
    text = new_method.with_line(f"## [Unreleased]\n\n{before}## [0.1.0]\n\n### Added\n\n- c\n", "- a\n")
    assert text == f"## [Unreleased]\n\n### Added\n\n- a\n\n{before}## [0.1.0]\n\n### Added\n\n- c\n"

"""The workflows are valid, call commands that exist, and cover the Pythons that the package supports."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yml")}
JOBS = [(name, job) for name, workflow in WORKFLOWS.items() for job in workflow["jobs"]]
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
PYTHONS = [match[1] for line in CLASSIFIERS if (match := re.search(r"Python :: (3\.\d+)$", line))]


def job_of(name: str, job: str) -> dict:
    return WORKFLOWS[name]["jobs"][job]


def commands_of(name: str, job: str) -> list[str]:
    return [step["run"] for step in job_of(name, job)["steps"] if "run" in step]


def test_there_is_one_for_changes_and_one_for_releases():
    assert set(WORKFLOWS) == {"ci", "publish"}
    # YAML 1.1 reads the key `on` as true.
    assert WORKFLOWS["ci"][True].keys() == {"push", "pull_request", "workflow_dispatch"}
    assert WORKFLOWS["publish"][True] == {"push": {"tags": ["v*"]}}


@pytest.mark.parametrize(("name", "job"), JOBS, ids=str)
def test_a_job_has_known_parts_and_existing_commands(name, job):
    made = job_of(name, job)
    assert {"runs-on", "steps"} <= made.keys()
    assert made.keys() <= {"runs-on", "steps", "needs", "strategy", "environment", "permissions", "timeout-minutes"}
    needed = made.get("needs", [])
    assert set([needed] if isinstance(needed, str) else needed) <= WORKFLOWS[name]["jobs"].keys()
    for step in made["steps"]:
        assert len({"uses", "run"} & step.keys()) == 1
        assert step.keys() <= {"uses", "run", "name", "with", "env"}
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@[\w/.]+", step["uses"])
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for command in commands_of(name, job):
        assert set(re.findall(r"\bmake ([\w-]+)", command)) <= set(targets)
        named = re.findall(r"(?<!\S)(?:\./)?((?:tests|\.ci|docs)/\S+)", command)
        assert [path for path in named if not (ROOT / path).exists()] == []


def test_changes_run_what_a_change_must_pass():
    assert commands_of("ci", "checks") == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


@pytest.mark.parametrize(("name", "job"), [("ci", "tests"), ("publish", "wheel")])
def test_every_supported_python_takes_part(name, job):
    assert job_of(name, job)["strategy"]["matrix"] == {"python": PYTHONS}


def test_a_release_is_checked_before_it_is_published():
    publish = job_of("publish", "publish")
    assert set(publish["needs"]) == {"build", "wheel"} and publish["permissions"] == {"id-token": "write"}
    assert any("twine check --strict" in command for command in commands_of("publish", "build"))
    assert all("permissions" not in job for name, job in WORKFLOWS["publish"]["jobs"].items() if name != "publish")
    assert all(flow["permissions"] == {"contents": "read"} for flow in WORKFLOWS.values())


def test_the_tag_must_be_the_version():
    (check,) = (command for command in commands_of("publish", "build") if "GITHUB_REF_NAME" in command)
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version and "grep -qx" in check and 'version = \\"${GITHUB_REF_NAME#v}\\"' in check

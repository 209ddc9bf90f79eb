"""The README's Python runs as it stands, and its commands exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]


def test_there_is_something_to_run():
    assert len(PYTHON) >= 3 and len(COMMANDS) >= 3


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_python(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("target", [line.split()[1] for line in COMMANDS if line.startswith("make ")])
def test_make_targets_exist(target):
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_files_that_are_named_exist():
    named = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    named += re.findall(r"\b(?:examples|accelerate_configs|benchmarks|tests|docs)/[\w./-]*\w", README)
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing

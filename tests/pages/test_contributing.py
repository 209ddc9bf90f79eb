"""The pages for contributors name existing files and commands, and every method satisfies their checklist."""

import inspect
import re
import sys
from pathlib import Path

import pytest
import yaml

from canon_trl import CANONConfig
from canon_trl.config.stages import StagesConfig
from canon_trl.metrics import METRICS
from canon_trl.schedules import SCHEDULES

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402

GUIDES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "contributing").glob("*.md"))]
CONTRIBUTING = "".join(path.read_text() for path in GUIDES)
TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))
METHODS = {name: method for stage in generate.stages().values() for name, method in stage.methods.items()}


def test_named_files_exist():
    named = re.findall(r"`((?:canon_trl|tests|examples|benchmarks|docs|\.ci)/[\w./-]*\w/?)`", CONTRIBUTING)
    named += re.findall(r"`([\w.]+\.(?:md|toml|cff|txt))`", CONTRIBUTING)
    assert [path for path in named if not (ROOT / path).exists() and "range_scaled" not in path] == []


def test_named_commands_are_make_targets():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"`make ([\w-]+)`", CONTRIBUTING)
    assert set(named) - set(targets) == set()


def test_contributing_fits_on_a_screen():
    lines = GUIDES[0].read_text().splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 120


def test_no_skeleton_is_unfinished():
    """`canon-trl new-method` marks with TODO what the author replaces."""
    files = [*(ROOT / "canon_trl").rglob("*.py"), *(ROOT / "tests" / "methods").glob("*.py")]
    named = {path.relative_to(ROOT).as_posix() for path in files if "TODO" in path.read_text()}
    assert named == {"canon_trl/cli/new_method.py", "tests/methods/test_new_method.py"}


def test_every_test_file_has_a_docstring():
    undocumented = [path.name for path in TEST_FILES if not path.read_text().startswith('"""')]
    assert undocumented == []


def test_every_test_file_is_in_a_folder_that_the_table_lists():
    listed = set(re.findall(r"^\| `tests/(\w+)/` \|", CONTRIBUTING, flags=re.MULTILINE))
    assert {path.parent.relative_to(ROOT / "tests").as_posix() for path in TEST_FILES} == listed


def test_no_two_test_files_have_the_same_name():
    """The folders are not packages, so pytest imports a file by its name only."""
    names = [path.name for path in TEST_FILES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_tested_on_its_own(method):
    file = Path(inspect.getfile(METHODS[method].function))
    names = re.findall(r"^(?:def|class) (\w+)", file.read_text(), flags=re.MULTILINE)
    tested = "".join(path.read_text() for path in TEST_FILES if path.parent.name == "methods")
    assert any(re.search(rf"\b{name}\b", tested) for name in names)


@pytest.mark.parametrize("name", [*METHODS, *METRICS, *SCHEDULES])
def test_the_configuration_documents_every_choice(name):
    assert any(f'"{name}"' in config.__doc__ for config in (CANONConfig, StagesConfig))


def test_the_changelog_begins_with_unreleased_changes():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert versions[0] == "Unreleased"


@pytest.mark.parametrize("name", ["bug_report", "new_method"])
def test_issue_templates_are_forms(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    required = [field["id"] for field in fields if field.get("validations", {}).get("required")]
    assert (
        required
        == {
            "bug_report": ["what", "script", "config", "versions"],
            "new_method": ["paper", "code", "equation", "golden"],
        }[name]
    )

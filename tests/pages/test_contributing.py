"""CONTRIBUTING.md names files that exist, and every method has what its checklist asks for."""

import re
from pathlib import Path

import pytest
import yaml

from canon_trl import CANONConfig, advantages, policy_losses
from canon_trl.advantages import ESTIMATORS
from canon_trl.config.stages import StagesConfig
from canon_trl.metrics import METRICS
from canon_trl.policy_losses import POLICY_LOSSES
from canon_trl.publishing.papers import PAPERS
from canon_trl.schedules import SCHEDULES

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
README = (ROOT / "README.md").read_text()
TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))
METHODS = [*ESTIMATORS, *POLICY_LOSSES]

# The page of each method, where it is not of the same name.
PAGES = {
    **dict.fromkeys(("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline"), "group_relative"),
    **dict.fromkeys(("psr", "nsr", "w_reinforce"), "reinforce"),
    **dict.fromkeys(("clip_cov", "kl_cov"), "covariance"),
}
NO_RECIPE = {
    "dr_grpo": "a baseline: CANON's recipes with `advantage_estimator: dr_grpo`",
    "rloo": "a baseline, n / (n - 1) of Dr.GRPO",
    "reinforce_pp_baseline": "a baseline, without options of its own",
    "opo": "without options of its own; what its paper asks for beside it are TRL's defaults",
    "psr": "w_reinforce without one half; the paper's own method is w_reinforce",
    "nsr": "w_reinforce without the other half; the paper's own method is w_reinforce",
}


def function_of(method: str) -> str:
    """The name of the method's pure function."""
    name = f"{method}_mask" if method in POLICY_LOSSES else f"{method}_advantage"
    assert callable(getattr(policy_losses if method in POLICY_LOSSES else advantages, name))
    return name


def test_every_file_that_is_named_exists():
    named = re.findall(r"`((?:canon_trl|tests|examples|benchmarks|docs|\.ci)/[\w./-]*\w/?)`", CONTRIBUTING)
    named += re.findall(r"`([\w.]+\.(?:md|toml|cff|txt))`", CONTRIBUTING)
    named += re.findall(r"\]\(([^)]+)\)", CONTRIBUTING)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_command_that_is_named_is_a_target():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"`make ([\w-]+)`", CONTRIBUTING)
    assert set(named) - set(targets) == set()


def test_every_test_file_says_what_it_holds():
    silent = [path.name for path in TEST_FILES if not path.read_text().startswith('"""')]
    assert silent == []


def test_every_test_file_is_in_a_folder_that_the_table_lists():
    listed = set(re.findall(r"^\| `tests/(\w+)/` \|", CONTRIBUTING, flags=re.MULTILINE))
    assert {path.parent.relative_to(ROOT / "tests").as_posix() for path in TEST_FILES} == listed


def test_no_two_test_files_have_the_same_name():
    """The folders are no packages, so that pytest imports a file by its name alone."""
    names = [path.name for path in TEST_FILES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_tests_and_golden_numbers(method):
    name = function_of(method)
    family = "test_policy_losses.py" if method in POLICY_LOSSES else "test_advantages.py"
    assert re.search(rf"\b{name}\b", (ROOT / "tests" / "methods" / family).read_text())
    with_golden = [
        path.name
        for path in TEST_FILES
        if "from golden_cases import" in path.read_text() and re.search(rf"\b{name}\b", path.read_text())
    ]
    assert with_golden, f"no test of golden numbers calls {name}"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_a_recipe_or_the_reason_why_not(method):
    option = "policy_loss" if method in POLICY_LOSSES else "advantage_estimator"
    recipes = [yaml.safe_load(path.read_text()) for path in (ROOT / "examples" / "configs").glob("*.yaml")]
    named = {recipe.get(option) for recipe in recipes}
    if any("canon_metric" in recipe for recipe in recipes):
        named.add("canon")  # the default
    assert (method in named) != (method in NO_RECIPE)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_a_row_in_the_readme_and_a_page(method):
    rows = [line for line in README.splitlines() if line.startswith("|")]
    assert any(re.search(rf"`(?:policy_loss: )?{method}`", row) for row in rows)
    page = (ROOT / "docs" / "methods" / f"{PAGES.get(method, method)}.md").read_text()
    assert re.search(rf"`(?:\w+: )?{method}`|\b{method}\b", page)
    assert "https://huggingface.co/papers/" in page


@pytest.mark.parametrize("method", METHODS)
def test_the_papers_of_a_method_are_cited(method):
    """The papers on the method's row of the README are in the index and in what the model card cites."""
    (row,) = [line for line in README.splitlines() if re.match(rf"\| .*`(?:policy_loss: )?{method}`.*papers/", line)]
    (paper,) = set(re.findall(r"papers/(\d{4}\.\d{5})", row))
    assert paper in (ROOT / "canon_trl" / "publishing" / "papers.py").read_text()
    assert paper in (ROOT / "docs" / "papers.md").read_text()


def test_the_index_has_the_titles_that_the_model_card_cites():
    headings = re.findall(r"^### (.+)$", (ROOT / "docs" / "papers.md").read_text(), flags=re.MULTILINE)
    assert {paper.title for paper in PAPERS.values()} - set(headings) == set()


@pytest.mark.parametrize("name", [*METHODS, *METRICS, *SCHEDULES])
def test_the_configuration_names_every_choice(name):
    assert any(f'"{name}"' in config.__doc__ for config in (CANONConfig, StagesConfig))


def test_the_changelog_has_a_section_for_what_comes_next():
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

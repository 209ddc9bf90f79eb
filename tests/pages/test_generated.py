"""The generated parts of the pages are up to date with the code, and a new method needs four edits."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402

from canon_trl.method import Method, Stage, by_name  # noqa: E402


def test_every_generated_part_is_current():
    stale = [str(path.relative_to(ROOT)) for path, text in generate.files().items() if path.read_text() != text]
    assert stale == [], "run python docs/generate.py"


def test_every_method_has_its_section_and_its_row_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for folder, stage in generate.stages().items():
        page = (ROOT / "docs" / "stages" / f"{folder}.md").read_text()
        for name in stage.methods:
            assert f"\n## `{name}`\n" in page
            assert f"| `{name}` |" in readme


def test_the_readme_counts_the_methods_with_a_paper():
    found = [method for stage in generate.stages().values() for method in stage.methods.values()]
    assert f": {len(found) - 2} published methods," in generate.headline()
    assert [method.name for method in found if method.paper is None] == ["mix", "adaptive_clip"]


def test_the_readme_shows_the_contrasts_of_a_study(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "REPORTS", tmp_path)
    for task, methods in {"arithmetic": {"dr_grpo": (0.9, None), "inter, entropy": (0.95, False)}}.items():
        found = {
            name: {
                "seeds": [1, 3],
                "accuracy": {"mean": mean, "sd": 0.01}
                | ({} if noise is None else {"difference": {"is_noise": noise}}),
            }
            for name, (mean, noise) in methods.items()
        }
        write_report(tmp_path / task, {task: {"methods": found}})
    assert "with seeds 1, 3, CANON-Inter by entropy ends at 0.950 ± 0.010" in generate.measured()
    assert "the difference is significant" in generate.measured()

    shared = {"method": "intra", "minus": "dr_grpo", "prediction": "higher"}
    difference = {"mean": 0.0312, "low": 0.01, "high": 0.052, "pairs": 3, "is_noise": False}
    decided = shared | {"task": "hint", "seeds": [1, 2, 3], "difference": difference, "outcome": "as predicted"}
    unfinished = shared | {"task": "noise", "seeds": [], "difference": None, "outcome": "not enough runs"}
    write_report(tmp_path / "study", {"primary": "training accuracy", "contrasts": [decided, unfinished]})
    text = generate.measured()
    assert "predicted 2 differences in training accuracy" in text and "It has seeds 1 to 3 and" in text
    assert "| hint | intra - dr_grpo | higher | +0.031 (+0.010 to +0.052) | as predicted |" in text
    assert "| noise | intra - dr_grpo | higher |  | not enough runs |" in text


def write_report(folder: Path, report: dict) -> None:
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report))


def test_every_method_says_when_to_use_it():
    """In its docstring, or on a page of its own."""
    silent = [
        name
        for stage in generate.stages().values()
        for name, method in stage.methods.items()
        if "Use it" not in generate.docstring(method) and generate.hand_written(generate.file_of(method)) is None
    ]
    assert silent == []


def test_a_method_needs_four_edits(tmp_path):
    """The example in docs/contributing appears on every page of a copy of the repository. Removing it undoes that."""
    for name in ("canon_trl", "docs", "tests", "README.md", "CHANGELOG.md", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tmp_path / name)
    before = contents(tmp_path)

    def run(*command: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run([sys.executable, *command], **options)
        assert done.returncode == 0, done.stdout + done.stderr

    example = (ROOT / "docs" / "contributing" / "new_method.md").read_text()
    blocks = re.findall(r"`([\w/]+range_scaled\.py)`:\n\n<!--.*?-->\n```python\n(.*?)```", example, flags=re.DOTALL)
    written = {path if "/" in path else f"tests/methods/{path}": code for path, code in blocks}
    imported, line = re.findall(r"^\+(.*range_scaled.*\n)", example, flags=re.MULTILINE)
    folder, changelog = tmp_path / "canon_trl" / "advantages" / "__init__.py", tmp_path / "CHANGELOG.md"
    for path, code in written.items():
        (tmp_path / path).write_text(code)
    edited = before[folder].replace("ESTIMATORS = by_name(\n", f"ESTIMATORS = by_name(\n{line}")
    below = "from canon_trl.advantages.reinforce import"
    folder.write_text(edited.replace(below, imported + below))
    changelog.write_text(before[changelog].replace("## [Unreleased]\n", "## [Unreleased]\n\n- `range_scaled`\n"))
    edits = {*written, "canon_trl/advantages/__init__.py", "CHANGELOG.md"}
    assert changes(before, contents(tmp_path)) == edits and len(edits) == 4

    run("docs/generate.py")
    changed = changes(before, contents(tmp_path))
    for page in ("README.md", "docs/stages/advantages.md", "canon_trl/config/stages.py"):
        assert page in changed
        assert "range_scaled" in (tmp_path / page).read_text()
    assert "`power` = `1.0` in [0, 1]" in (tmp_path / "docs" / "stages" / "advantages.md").read_text()
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/methods/test_range_scaled.py")

    for path in written:
        (tmp_path / path).unlink()
    folder.write_text(before[folder])
    changelog.write_text(before[changelog])
    run("docs/generate.py")
    assert changes(before, contents(tmp_path)) == set()


def contents(folder: Path) -> dict[Path, str]:
    """Return the text files below a folder."""
    found = (path for path in folder.rglob("*") if path.suffix in (".py", ".md", ".toml", ".svg"))
    return {path: path.read_text() for path in found}


def changes(before: dict[Path, str], after: dict[Path, str]) -> set[str]:
    """Return the relative paths of the files that differ."""
    root = next(path.parent for path in before if path.name == "pyproject.toml")
    return {str(path.relative_to(root)) for path in before | after if before.get(path) != after.get(path)}


def unpublished(rewards):
    """Advantages are the rewards.

        A = r

    Args:
        rewards: `(P, G)`.
    """
    return rewards


def test_a_method_without_a_paper_says_so():
    stage = Stage("advantage_estimator", by_name(Method("unpublished", unpublished)))
    section = generate.section(stage, stage.methods["unpublished"])
    assert section.startswith("## `unpublished`\n\nAdvantages are the rewards.\n\n    A = r\n\n|")
    assert "| paper | none |" in section and "| reads | `rewards` |" in section


def test_the_documentation_of_a_field_lists_the_names():
    source = '''"""
    Args:
        advantage_estimator: A name: `"old"`; or an import path.
        other: Text.
"""
'''
    written = generate.with_names(source)
    assert '`"grpo"`' in written and '`"old"`' not in written
    assert "; or an import path.\n        other: Text." in written.replace("\n            ", " ")

"""What the pages say of every method follows from the code: `python docs/generate.py` has nothing to write."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402

from canon_trl.method import Method, Stage, by_name  # noqa: E402


def test_every_generated_part_is_current():
    stale = [str(path.relative_to(ROOT)) for path, text in generate.files().items() if path.read_text() != text]
    assert stale == [], "run python docs/generate.py"


def test_every_stage_has_a_page_and_its_table_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for folder, stage in generate.stages().items():
        page = (ROOT / "docs" / "stages" / f"{folder}.md").read_text()
        for name in stage.methods:
            assert f"\n## `{name}`\n" in page
            assert f"| `{name}` |" in readme


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


def test_names_are_written_into_the_text_of_the_field():
    source = '''"""
    Args:
        advantage_estimator: A name: `"old"`; or an import path.
        other: Text.
"""
'''
    written = generate.with_names(source)
    assert '`"grpo"`' in written and '`"old"`' not in written
    assert "; or an import path.\n        other: Text." in written.replace("\n            ", " ")

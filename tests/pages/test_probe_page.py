"""The generated parts of docs/probe.md are those that benchmarks/probe.py writes from the stored results."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
SCRIPT = importlib.util.spec_from_file_location("probe_page", ROOT / "benchmarks" / "probe.py")
writer = importlib.util.module_from_spec(SCRIPT)
SCRIPT.loader.exec_module(writer)


@pytest.mark.parametrize("name", writer.SECTIONS)
def test_the_page_has_the_stored_results(name):
    page = (ROOT / "docs" / "probe.md").read_text()
    assert f"<!-- {name} -->\n{writer.SECTIONS[name]()}\n<!-- end -->" in page, "run benchmarks/probe.py --tables"


def test_the_stored_results_are_of_the_options_on_the_page():
    settings = [writer.result(case)["settings"] for case in writer.CASES]
    assert {(each["num_prompts"], each["num_samples"], each["seed"]) for each in settings} == {(128, 16, 42)}

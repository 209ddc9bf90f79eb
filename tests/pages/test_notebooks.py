"""The stored notebooks, with their outputs, and the table of the examples; `make test-all` runs the notebooks."""

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest

from canon_trl.recipes import recipe_names

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import notebooks  # noqa: E402

EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
TABLE = (EXAMPLES / "README.md").read_text()
MACHINE_PATH = re.compile(r"""(?<![\w.:/])(?:/(?:home|root|tmp|work|Users|mnt|opt|usr|var)/|[A-Za-z]:\\|~/)""")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=nbformat.NO_CONVERT)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(output):
    """Return the texts of an output, without its pictures."""
    data = output.get("data", {})
    return [output.get("text", ""), *(text for kind, text in data.items() if kind.startswith("text/"))]


def test_a_notebook_is_valid_and_runs_in_any_python_3(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}  # a version would depend on who saves it


def test_the_outputs_are_those_of_the_code(notebook):
    assert notebook.metadata[notebooks.HASH] == notebooks.code_hash(notebook), "run `make notebooks`"
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(cell.metadata == {} for cell in notebook.cells)


def test_a_change_of_the_code_is_noticed_and_one_of_the_text_is_not(notebook):
    stored = notebook.metadata[notebooks.HASH]
    next(cell for cell in notebook.cells if cell.cell_type == "markdown").source += "."
    assert notebooks.code_hash(notebook) == stored
    code_of(notebook)[-1].source += " "
    assert notebooks.code_hash(notebook) != stored


def test_every_cell_that_shows_something_has_an_output_and_none_an_error(notebook):
    for cell in code_of(notebook):
        assert not [output for output in cell.outputs if output.output_type == "error"], cell.id
        if isinstance(ast.parse(cell.source).body[-1], (ast.Expr, ast.For)):
            assert cell.outputs, cell.id
    pictures = [
        output for cell in code_of(notebook) for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert pictures


def test_the_outputs_do_not_depend_on_the_machine(notebook):
    for cell in code_of(notebook):
        for output in cell.outputs:
            assert output.get("name") != "stderr", cell.id
            for text in shown(output):
                assert not MACHINE_PATH.search(text) and " at 0x" not in text and "WARNING" not in text, cell.id


def test_a_notebook_is_not_too_large(notebook, request):
    path = request.node.callspec.params["notebook"]
    assert path.stat().st_size < 400_000


def test_what_depends_on_the_machine_is_removed():
    bar = (
        "<progress></progress> [24/24 00:35, Epoch 0/1]<progress></progress> [3/24 00:01 < 00:09, 2.1 it/s, Epoch 0/1]"
    )
    log = "[2026-12-01 01:47:15,138] [WARNING] [real_accelerator.py:213:get_accelerator] Setting to CPU.\n\nkept\n"
    cell = nbformat.v4.new_code_cell(
        outputs=[
            nbformat.v4.new_output("stream", name="stderr", text="kept nowhere"),
            nbformat.v4.new_output("stream", name="stdout", text=log),
            nbformat.v4.new_output("stream", name="stdout", text=log.removesuffix("kept\n")),
            nbformat.v4.new_output("display_data", {"text/html": bar}),
        ]
    )
    notebooks.clean(nbformat.v4.new_notebook(cells=[cell]))
    stream, display = cell.outputs
    assert stream.text == "kept\n"
    assert (
        display.data["text/html"].count("[24/24, Epoch 0/1]") == display.data["text/html"].count("[3/24, Epoch") == 1
    )


# Claims of the texts: a pattern of what the notebook prints, and what holds for the numbers in it.
CLAIMS = {
    "canon_quickstart": (r"held-out prompts: (\S+) before, (\S+) after", lambda before, after: after > before + 0.1),
    "own_metric_and_estimator": (r"response: (\S+) in .* steps, (\S+) in", lambda first, last: last < first),
    "compare_two_methods": (r"length: (\S+) \(\S+ to (\S+)\), significant", lambda mean, high: mean < high < 0),
    "astar_po_two_stages": (r"difference: (\S+) \((\S+) to", lambda mean, low: mean > 0.1 and low > 0),
    "evaluate_and_plot": (r"pass@1: (\S+) \((\S+) to", lambda mean, low: mean > 0.1 and low > 0),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_outputs_show_what_the_text_claims(name):
    pattern, holds = CLAIMS[name]
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)
    printed = "".join(output.get("text", "") for cell in code_of(notebook) for output in cell.outputs)
    assert holds(*map(float, re.search(pattern, printed).groups()))


def test_cells_have_readable_ids(notebook):
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in ids)  # an editor would write random ones


def test_a_notebook_begins_with_installation_instructions(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert "from a clone" in first.source and "pip install -e ." in first.source


def test_a_notebook_has_no_assertions(notebook):
    assert not [
        node for cell in code_of(notebook) for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)
    ]


def test_a_notebook_uses_public_names_only(notebook):
    nodes = [node for cell in code_of(notebook) for node in ast.walk(ast.parse(cell.source))]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert "canon_trl" in {module.split(".")[0] for module in modules}
    assert not [name for name in names if name.startswith("_")]
    assert not [module for module in modules if module.split(".")[0] in ("tests", "toy", "observe", "smollm2")]


def test_no_cell_has_a_machine_path_or_trusts_remote_code(notebook):
    for cell in notebook.cells:
        assert not MACHINE_PATH.search(cell.source), cell.id
        assert "trust_remote_code" not in cell.source, cell.id


@pytest.mark.parametrize("text", ["'/home/me/model'", "(/tmp/x)", r"C:\models", "~/runs"])
def test_machine_paths_are_recognised(text):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["../docs/start.md", "outputs/run", "https://huggingface.co/home/x", "a/tmp/x"])
def test_other_paths_are_allowed(text):
    assert not MACHINE_PATH.search(text)


def test_notebooks_write_only_to_outputs(notebook):
    folders = [
        keyword.value
        for cell in code_of(notebook)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "output_dir"
    ]
    assert folders
    assert all(re.match(r"f?'outputs/", ast.unparse(folder)) for folder in folders)


def test_linked_notebooks_exist(notebook):
    linked = [name for cell in notebook.cells for name in re.findall(r"\]\(([\w.]+\.ipynb)\)", cell.source)]
    assert {*linked} <= {path.name for path in NOTEBOOKS}


def test_the_table_lists_every_example_and_recipe():
    files = [path for folder in (".", "slurm") for path in (EXAMPLES / folder).glob("*.*")]
    examples = {str(path.relative_to(EXAMPLES)) for path in files} - {"README.md"}
    recipes = {f"../canon_trl/recipes/{name}.yaml" for name in recipe_names()}
    assert set(re.findall(r"\]\(([^)]+)\)", TABLE)) == examples | recipes


def test_labels_in_the_table_match_their_links():
    for label, target in re.findall(r"\[`([^`]+)`\]\(([^)]+)\)", TABLE):
        assert label in (target, Path(target).name)

"""Run the notebooks in examples/ and store them with their outputs.

python docs/notebooks.py              # all; `make notebooks` does this
python docs/notebooks.py quickstart   # those whose names contain this word

Each notebook runs in a separate, empty folder, offline and on one thread. What depends on the machine is not stored:
the text on stderr (progress bars of loading, warnings), times, and the version of Python. The metadata records a hash
of the code cells, by which `tests/pages/test_notebooks.py` recognises outputs of older code.
"""

import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

EXAMPLES = Path(__file__).parents[1] / "examples"
HASH = "code_sha256"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
TIME_LIMIT = 1800  # seconds per cell
DPI = 80  # of the pictures, so that a notebook stays below 400 kB
LOG_LINE = re.compile(r"^\[[-\d]+ [:,\d]+\] \[[A-Z]+\] .*\n+", re.MULTILINE)  # of DeepSpeed, about the hardware
PROGRESS_TIMES = re.compile(r"(?<=\d) [\d:]+(?: < [\d:]+, [^,\]]+)?(?=, Epoch)")


def code_hash(notebook: NotebookNode) -> str:
    """Return a hash of the code that made the outputs; text can change without running a notebook again."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def run(path: Path) -> None:
    """Run a notebook and store it with its outputs; an error in a cell is raised, and the file stays as it is."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "matplotlibrc").write_text(f"figure.dpi: {DPI}\n")
        client = NotebookClient(
            notebook,
            timeout=TIME_LIMIT,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    clean(notebook)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        HASH: code_hash(notebook),
    }
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def clean(notebook: NotebookNode) -> None:
    """Remove from the outputs what depends on the machine or has no use in a stored notebook."""
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = LOG_LINE.sub("", output.text)
            elif "image/png" in output.get("data", {}):
                output.data.pop("text/plain", None)  # <Figure size ...>
            elif "<progress" in output.get("data", {}).get("text/html", ""):
                output.data["text/html"] = PROGRESS_TIMES.sub("", output.data["text/html"])
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr" and each.get("text") != ""]


if __name__ == "__main__":
    os.environ |= ENVIRONMENT
    wanted = sys.argv[1:] or [""]
    for each in sorted(EXAMPLES.glob("*.ipynb")):
        if any(word in each.stem for word in wanted):
            begun = time.time()
            run(each)
            print(f"{each.name}: {time.time() - begun:.0f} s, {each.stat().st_size / 1000:.0f} kB")

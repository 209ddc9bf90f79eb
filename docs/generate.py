"""Generate the parts of the pages that describe methods, papers, imports and comparisons.

    python docs/generate.py            writes the parts that are out of date
    python docs/generate.py --check    lists them, and fails if there are any

A generated part is between `<!-- generated: NAME -->` and `<!-- end -->`; the rest of a page is written by hand. In
the docstring of a configuration, the names of a stage are between `A name: ` and `; ` in the text of its field.

The sources are the dicts of the stages, the signatures and docstrings of their functions, the `PAPER` at the top of
each method's file, and the reports in `docs/comparisons`. The script needs only torch.
"""

import argparse
import ast
import inspect
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from canon_trl.method import Method, Stage
from canon_trl.options import bounded, hints, options_of, plain_function
from canon_trl.paper import Paper

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "canon_trl"
REPORTS = ROOT / "docs" / "comparisons"

# In the order in which data passes through them.
FOLDERS = ("policy_rewards", "advantages", "token_advantages", "policy_losses", "loss_terms", "controllers")

MARKED = re.compile(r"<!-- generated: (?P<name>[\w ]+) -->\n.*?<!-- end -->\n", flags=re.DOTALL)
REFERENCE = re.compile(r"\[`~?(?:\w+\.)*(\w+)`\]")
SECTION = re.compile(r"^(Args|Returns|Raises):$", flags=re.MULTILINE)


def stages() -> dict[str, Stage]:
    """The stages whose folders exist, by folder."""
    found = {}
    for folder in filter(lambda each: (PACKAGE / each).is_dir(), FOLDERS):
        for exported in vars(import_module(f"canon_trl.{folder}")).values():
            if isinstance(exported, Stage):
                found[folder] = exported
    return found


def file_of(method: Method) -> Path:
    """The method's file, relative to the root of the repository."""
    function = inspect.unwrap(plain_function(method.function))
    return Path(inspect.getfile(function)).resolve().relative_to(ROOT.resolve())


def docstring(method: Method) -> str:
    """The docstring of the method's function, with references as code."""
    text = inspect.getdoc(inspect.unwrap(plain_function(method.function))) or ""
    assert text, f"{method.name} has no docstring to make its page from"
    return REFERENCE.sub(r"`\1`", text)


def idea(method: Method) -> str:
    """The first paragraph of the docstring."""
    return " ".join(docstring(method).split("\n\n")[0].split())


def link(paper: Paper | None, text: str | None = None) -> str:
    return "none" if paper is None else f"[{text or paper.id}]({paper.url})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# --- The generated parts ---


def headline() -> str:
    """The README's first sentence, with the number of published methods."""
    published = sum(method.paper is not None for stage in stages().values() for method in stage.methods.values())
    return (
        f"**Custom advantage estimators for TRL's `GRPOTrainer`: {published} published methods, or your own in ten "
        "lines.**"
    )


def measured() -> str:
    """What the README says about CANON: the contrasts of the study, or `arithmetic` while the study has no report."""
    study = REPORTS / "study" / "report.json"
    return contrasts(json.loads(study.read_text())) if study.exists() else without_study()


def measured_for_site() -> str:
    """`measured` with links that are relative to docs/."""
    return measured().replace("](docs/", "](")


def contrasts(report: dict[str, Any]) -> str:
    """The contrasts that a study named before its runs, with their differences."""
    rows = [
        [each["task"], f"{each['method']} - {each['minus']}", each["prediction"], shown(each), each["outcome"]]
        for each in report["contrasts"]
    ]
    outcome, seeds = report.get("primary", "accuracy"), seeds_of(report["contrasts"])
    return (
        f"A study predicted {len(rows)} differences in {outcome} before its runs, on [tasks](docs/comparisons.md#"
        f"what-the-tasks-can-show) that theory singles out. It has {seeds} and a learning rate tuned for each method; "
        "the 95% intervals hold jointly.\n\n" + table(["task", "difference", "predicted", "measured", "outcome"], rows)
    )


def without_study() -> str:
    """Final accuracies of CANON-Inter and its baseline on `arithmetic`."""
    found = json.loads((REPORTS / "arithmetic" / "report.json").read_text())["arithmetic"]["methods"]
    inter, baseline = found["inter, entropy"], found["dr_grpo"]
    verdict = "not significant" if inter["accuracy"]["difference"]["is_noise"] else "significant"
    return (
        f"On `arithmetic` with {seeds_of([inter])}, CANON-Inter by entropy ends at {spread(inter)} and Dr.GRPO at "
        f"{spread(baseline)} (mean ± standard deviation); the difference is {verdict}."
    )


def spread(method: dict[str, Any]) -> str:
    return f"{method['accuracy']['mean']:.3f} ± {method['accuracy']['sd']:.3f}"


def shown(contrast: dict[str, Any]) -> str:
    """The difference of a contrast with its interval."""
    difference = contrast["difference"]
    if difference is None or difference["low"] is None:
        return ""
    return f"{difference['mean']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"


def seeds_of(parts: list[dict[str, Any]]) -> str:
    """The seeds of parts of a report, as "seeds 1 to 10" if none is missing in between."""
    seeds = sorted({seed for part in parts for seed in part["seeds"]})
    if len(seeds) > 1 and seeds == [*range(seeds[0], seeds[-1] + 1)]:
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"


def methods() -> str:
    """The README's tables of methods, one per stage."""
    parts = []
    for folder, stage in stages().items():
        rows = [[f"`{name}`", idea(method), link(method.paper)] for name, method in stage.methods.items()]
        page = f"docs/stages/{folder}.md"
        parts.append(f"[`{stage.field}`]({page}): {about(folder)}\n\n{table(['name', 'method', 'paper'], rows)}")
    return "\n".join(parts)


def about(folder: str) -> str:
    """What a stage does: the first paragraph of the folder's docstring, after its colon."""
    text = " ".join((import_module(f"canon_trl.{folder}").__doc__ or "").split("\n\n")[0].split())
    return REFERENCE.sub(r"`\1`", text.partition(": ")[2] or text)


def stage_page(folder: str) -> str:
    """The methods of a stage: each with its docstring, options and paper."""
    stage = stages()[folder]
    return "\n".join(section(stage, method) for method in stage.methods.values())


def section(stage: Stage, method: Method) -> str:
    facts = [["reads", ", ".join(f"`{name}`" for name in method.reads) or "nothing from the rollout"]]
    facts += [["option", option] for option in options(method)]
    if method.reward_range is not None:
        facts.append(["rewards", f"in {method.reward_range}; others are rejected"])
    paper = method.paper
    facts.append(["paper", "none" if paper is None else link(paper, paper.title)])
    if paper is not None and paper.code is not None:
        facts.append(["authors' code", f"[{paper.code}](https://github.com/{paper.code})"])
    code = file_of(method)
    facts.append(["file", f"[`{code}`](../../{code})"])
    if page := hand_written(code):
        facts.append(["more", f"[when to use it and when not](../methods/{page})"])
    text = SECTION.split(docstring(method))[0].strip()
    return f"## `{method.name}`\n\n{text}\n\n{table(['', ''], facts)}"


def options(method: Method) -> Iterator[str]:
    """Each option with its default and bounds."""
    annotations = hints(method.function)
    for parameter in options_of(method.function):
        kind, bounds = bounded(annotations.get(parameter.name))
        words = f"`{parameter.name}`"
        if parameter.default is not parameter.empty:
            words += f" = `{parameter.default!r}`"
        choices = [repr(choice) for choice in getattr(kind, "__args__", ()) if isinstance(choice, str)]
        if choices:
            words += f", one of {', '.join(f'`{choice}`' for choice in choices)}"
        elif bounds != "[-inf, inf]":
            words += f" in {bounds}"
        yield words


def hand_written(code: Path) -> str | None:
    """The page in docs/methods that links to the method's file as its code."""
    pages = sorted((ROOT / "docs" / "methods").glob("*.md"))
    return next((page.name for page in pages if f"../../{code})" in page.read_text()), None)


def papers() -> str:
    """The index of papers, each with its methods."""
    found: dict[Paper, list[str]] = {}
    for folder, stage in stages().items():
        for name, method in stage.methods.items():
            if method.paper is not None:
                found.setdefault(method.paper, []).append(f"[`{name}`](stages/{folder}.md#{name})")
    rows = [
        [link(paper, paper.title), ", ".join(names), "none known" if paper.code is None else f"`{paper.code}`"]
        for paper, names in sorted(found.items(), key=lambda item: item[0].id)
    ]
    return table(["paper", "methods", "authors' code"], rows)


def citations() -> str:
    """The BibTeX entry of every paper in the index."""
    found = {method.paper for stage in stages().values() for method in stage.methods.values() if method.paper}
    return "```bibtex\n" + "\n\n".join(paper.citation for paper in sorted(found, key=lambda p: p.id)) + "\n```\n"


def stage_table() -> str:
    """The stages: field, folder, what its methods do, and the file that calls them."""
    rows = [
        [
            f"`{stage.field}`",
            f"[`{folder}/`](../canon_trl/{folder}/__init__.py)",
            about(folder),
            f"[`{stage.called_in}`](../canon_trl/{stage.called_in})",
        ]
        for folder, stage in stages().items()
    ]
    return table(["field", "folder", "what", "called in"], rows)


def modules_to_render(folder: str) -> str:
    """The modules of a stage that have the name of a public function, which the site's reference would leave out."""
    package = import_module(f"canon_trl.{folder}")
    names = [name for name in package.__all__ if (PACKAGE / folder / f"{name}.py").exists()]
    return "\n\n".join(f"::: {package.__name__}.{name}" for name in names)


def imports() -> str:
    """Which part of the package imports which, one line per part."""
    edges: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(PACKAGE).with_suffix("").parts
        importer = names[0] if names != ("__init__",) else PACKAGE.name
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module is not None and module.startswith("canon_trl."):
                edges.setdefault(importer, set()).add(module.split(".")[1])
    below = {part: needed - {part} for part, needed in edges.items()}
    order = sorted(below, key=lambda part: (-depth(part, below), part))
    lines = [f"{part} -> {', '.join(sorted(below[part]))}\n" for part in order if below[part]]
    return "```text\n" + "".join(lines) + "```\n"


def depth(part: str, below: dict[str, set[str]]) -> int:
    """The length of the longest chain of imports below a part, which must have no circle."""
    return 1 + max((depth(other, below) for other in below.get(part, ())), default=0)


PARTS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "measured": measured,
    "measured for site": measured_for_site,
    "methods": methods,
    "papers": papers,
    "citations": citations,
    "stages": stage_table,
    "imports": imports,
    **{f"stage {folder}": lambda folder=folder: stage_page(folder) for folder in FOLDERS},
    **{f"modules {folder}": lambda folder=folder: modules_to_render(folder) for folder in FOLDERS},
}


# --- Writing the files ---


def current(page: str) -> str:
    """The page with its parts up to date.

    Raises:
        KeyError: the name of a part is not in [`PARTS`].
    """
    return MARKED.sub(
        lambda part: f"<!-- generated: {part['name']} -->\n{PARTS[part['name']]().rstrip()}\n<!-- end -->\n", page
    )


def with_names(source: str) -> str:
    """The source of a configuration, with the names of each stage filled into the text of its field."""
    for stage in stages().values():
        option = re.compile(rf"^        {stage.field}: A name: .+\n(?: {{12}}.+\n)*", flags=re.MULTILINE)
        names = ", ".join(f'`"{name}"`' for name in stage.methods)
        if found := option.search(source):
            text = re.sub(r"(A name: ).*?(; )", rf"\1{names}\2", " ".join(found[0].split()), count=1)
            filled = textwrap.fill(
                text, 119, initial_indent=" " * 8, subsequent_indent=" " * 12, break_on_hyphens=False
            )
            source = source.replace(found[0], f"{filled}\n")
    return source


def files() -> dict[Path, str]:
    """Every file that has a generated part, with its text up to date."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = {page: current(page.read_text()) for page in pages if MARKED.search(page.read_text())}
    return found | {path: with_names(path.read_text()) for path in sorted((PACKAGE / "config").glob("*.py"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a part is out of date")
    check = parser.parse_args().check
    stale = {path: text for path, text in files().items() if path.read_text() != text}
    for path, text in stale.items():
        print(os.path.relpath(path), "is out of date" if check else "written")
        if not check:
            path.write_text(text)
    if check and stale:
        sys.exit("run python docs/generate.py")


if __name__ == "__main__":
    main()

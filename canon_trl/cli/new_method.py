"""Start a new method in a checkout: `canon-trl new-method NAME --stage STAGE`.

It makes the four edits that a method takes: its file, its line in the dict of its stage, its test and its line in the
changelog. A metric or a schedule is a function in `metrics.py` or `schedules.py`, and its name is also added to the
documentation of its config field. The files are a small method that works and whose test passes; every `TODO` marks
what the author replaces.
"""

import argparse
import ast
import keyword
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template

from canon_trl.options import did_you_mean

SKELETONS = Path(__file__).parent / "skeletons"
SEPARATOR = "# --- test ---\n"


@dataclass(frozen=True)
class Place:
    """Where the methods of a stage are.

    Args:
        dict_name: the dict that lists them.
        file: the file with the dict, in `canon_trl/`.
        entry: the line to add to the dict, without indentation.
        function: the function or class to import from the method's own file; empty if it is in `file` itself.
        field: the config field whose documentation lists the names, if `docs/generate.py` does not write it.
    """

    dict_name: str
    file: str
    entry: str
    function: str = ""
    field: str = ""


PLACES = {
    "policy_reward": Place(
        "POLICY_REWARDS", "policy_rewards/__init__.py", 'Method("$name", ${name}_reward),', "${name}_reward"
    ),
    "advantage_estimator": Place(
        "ESTIMATORS", "advantages/__init__.py", 'Method("$name", ${name}_advantage),', "${name}_advantage"
    ),
    "token_advantage": Place(
        "TOKEN_ADVANTAGES", "token_advantages/__init__.py", 'TokenAdvantage("$name", $name),', "$name"
    ),
    "policy_loss": Place("POLICY_LOSSES", "policy_losses/__init__.py", 'OnTRL("$name", $name),', "$name"),
    "loss_term": Place("LOSS_TERMS", "loss_terms/__init__.py", 'Method("$name", $name),', "$name"),
    "controller": Place("CONTROLLERS", "controllers/__init__.py", 'Method("$name", $class_name),', "$class_name"),
    "metric": Place("METRICS", "metrics.py", '"$name": $name,', field="canon_metric"),
    "schedule": Place("SCHEDULES", "schedules.py", '"$name": $name,', field="canon_mu_schedule"),
}


def main(argv: list[str]) -> list[Path]:
    """Write the files and return their paths.

    Raises:
        ValueError: the name or the stage is not possible, or this is not a checkout.
    """
    parser = argparse.ArgumentParser(prog="canon-trl new-method", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("name", help="name in the config, such as `range_scaled`")
    parser.add_argument("--stage", required=True, help=f"one of {', '.join(PLACES)}")
    given = parser.parse_args(argv)
    if given.stage not in PLACES:
        nearest = did_you_mean(given.stage, PLACES)
        raise ValueError(f"--stage {given.stage!r} is unknown{nearest}; choose one of {[*PLACES]}")
    root = checkout(Path.cwd())
    check_name(given.name, root)
    files = edits(given.name, given.stage, root)
    for path, text in files.items():
        path.write_text(text)
    tidy([path for path in files if path.suffix == ".py"], root)
    shown = "\n".join(f"  {path.relative_to(root)}" for path in files)
    print(
        f"wrote\n{shown}\n\nReplace every TODO. Then run\n  python docs/generate.py\n"
        f"  python -m pytest {test_file(given.name, root).relative_to(root)}\n"
        "docs/contributing/new_method.md says what else a method needs."
    )
    return [*files]


def run(argv: list[str]) -> None:
    main(argv)


def checkout(folder: Path) -> Path:
    """Return the root of the checkout that contains the folder.

    Raises:
        ValueError: the folder is in no checkout.
    """
    for root in (folder, *folder.parents):
        project = root / "pyproject.toml"
        if project.is_file() and 'name = "canon-trl"' in project.read_text() and (root / "tests" / "methods").is_dir():
            return root
    raise ValueError(f"{folder} is not in a checkout of canon_trl; clone the repository and run new-method there")


def check_name(name: str, root: Path) -> None:
    """Reject a name that is no identifier, or that a method or a test has already.

    Raises:
        ValueError: names the file that has it.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ValueError(f"name {name!r} must be an identifier of small letters, digits and _, such as 'range_scaled'")
    package = root / "canon_trl"
    for place in PLACES.values():
        file, own = package / place.file, package / Path(place.file).parent / f"{name}.py"
        source = file.read_text()
        if name in names_in(source, place.dict_name) or re.search(rf'^def {name}\(|= "{name}"$', source, flags=re.M):
            raise ValueError(f"name {name!r} exists already, in canon_trl/{place.file}")
        if place.function and own.exists():
            raise ValueError(f"name {name!r} exists already, as {own.relative_to(root)}")
    taken = {path.name for path in (root / "tests").rglob("test_*.py")}
    if test_file(name, root).name in taken:
        raise ValueError(f"name {name!r} exists already, as the test {test_file(name, root).name}")


def edits(name: str, stage: str, root: Path) -> dict[Path, str]:
    """Return the text of every file that the method adds or changes."""
    place = PLACES[stage]
    words = {"name": name, "class_name": name.title().replace("_", ""), "title": f"TODO: the full name of {name}"}

    def filled(text: str) -> str:
        return Template(text).substitute(words)

    code, test = filled((SKELETONS / f"{stage}.txt").read_text()).split(SEPARATOR)
    listing = root / "canon_trl" / place.file
    listed = with_entry(listing.read_text(), place.dict_name, filled(place.entry))
    found: dict[Path, str] = {}
    if place.function:
        module = f"canon_trl.{listing.parent.name}.{name}"
        found[listing.parent / f"{name}.py"] = code
        found[listing] = with_import(listed, module, filled(place.function))
    else:
        found[listing] = before_dict(listed, place.dict_name, code)
        config = root / "canon_trl" / "config" / "canon.py"
        found[config] = with_choice(config.read_text(), place.field, name)
    changelog = root / "CHANGELOG.md"
    return found | {test_file(name, root): test, changelog: with_line(changelog.read_text(), f"- `{name}`: TODO.\n")}


def test_file(name: str, root: Path) -> Path:
    return root / "tests" / "methods" / f"test_{name}.py"


def find_dict(source: str, name: str) -> ast.Assign | ast.AnnAssign:
    """Return the assignment of a dict."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and any(getattr(each, "id", "") == name for each in targets):
            return node
    raise ValueError(f"no dict {name} to add the method to")


def names_in(source: str, dict_name: str) -> set[object]:
    """Return the names in a dict, or of the methods that `by_name` makes one of."""
    value = find_dict(source, dict_name).value
    found = value.keys if isinstance(value, ast.Dict) else []
    if isinstance(value, ast.Call):
        found = [each.args[0] for each in value.args if isinstance(each, ast.Call)]
    return {each.value for each in found if isinstance(each, ast.Constant)}


def inserted(source: str, line: int, text: str) -> str:
    """Insert text before the line with this index."""
    lines = source.splitlines(keepends=True)
    return "".join([*lines[:line], text, *lines[line:]])


def with_entry(source: str, dict_name: str, entry: str) -> str:
    """Add an entry at the end of a dict whose closing bracket has its own line."""
    end = find_dict(source, dict_name).end_lineno or 0
    return inserted(source, end - 1, f"    {entry}\n")


def before_dict(source: str, dict_name: str, code: str) -> str:
    """Add a function before a dict."""
    return inserted(source, find_dict(source, dict_name).lineno - 1, f"{code}\n\n")


def with_import(source: str, module: str, function: str) -> str:
    """Import the function in alphabetical order of the modules of the package."""
    imports = [each for each in ast.parse(source).body if isinstance(each, ast.ImportFrom)]
    own = [each for each in imports if (each.module or "").startswith("canon_trl.")]
    later = [each for each in own if (each.module or "") > module]
    line = later[0].lineno - 1 if later else own[-1].end_lineno or 0
    return inserted(source, line, f"from {module} import {function}\n")


def with_choice(source: str, field: str, name: str) -> str:
    """Add a name after the last one in the documentation of a config field."""
    option = re.compile(rf"^        {field}: .+\n(?: {{12}}.+\n)*", flags=re.MULTILINE)

    def longer(found: re.Match[str]) -> str:
        text = " ".join(found[0].split())
        last = [*re.finditer(r'`"\w+"`(?: \([^)]*\))?', text)][-1].end()
        text = f'{text[:last]}, `"{name}"`{text[last:]}'
        return (
            textwrap.fill(text, 119, initial_indent=8 * " ", subsequent_indent=12 * " ", break_on_hyphens=False) + "\n"
        )

    return option.sub(longer, source, count=1)


def with_line(changelog: str, line: str) -> str:
    """Add a line at the top of what Unreleased lists as added."""
    head, title, rest = changelog.partition("## [Unreleased]\n")
    unreleased, following, older = rest.partition("\n## [")
    heading = re.compile(r"^### Added\n\n(?:#### .+\n\n)?", flags=re.MULTILINE)
    if heading.search(unreleased):
        unreleased = heading.sub(lambda found: found[0] + line, unreleased, count=1)
    else:
        unreleased = f"\n### Added\n\n{line}{unreleased}"
    return head + title + unreleased + following + older


def tidy(paths: list[Path], root: Path) -> None:
    """Let ruff sort the imports and wrap long lines, if it is installed."""
    if find_spec("ruff") is None:
        return
    for command in (["check", "--quiet", "--select", "I", "--fix"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, *map(str, paths)], cwd=root, check=False)

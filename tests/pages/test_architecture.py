"""docs/architecture.md matches the code: the imports between the parts and the use of TRL's private members."""

import ast
import inspect
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from trl import GRPOConfig, GRPOTrainer

from canon_trl import PluggableGRPOTrainer
from canon_trl.hook.members import MEMBERS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402

PAGE = (ROOT / "docs" / "architecture.md").read_text()
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
MODULES = sorted((ROOT / "canon_trl").rglob("*.py"))

Edge = tuple[str, str]

STAGES = ("policy_rewards", "advantages", "token_advantages", "policy_losses", "loss_terms", "controllers")
FILES = ("rollout", "tokens", "selection", "metrics", "schedules", "method", "options", "paper", "imports")
TORCH_ONLY = (*STAGES, *FILES)
# Members of TRL and transformers that subclasses are meant to set, and the name of a model.
MEANT_FOR_SUBCLASSES = {"_name", "_paper", "_tag_names", "_VALID_DICT_FIELDS", "_name_or_path"}
OF_OUR_OWN = {"canon_trl/sampling/samplers.py": {"_tokenizer"}}  # TRL has a member of the same name


def parts(path: Path) -> tuple[str, ...]:
    """Split the dotted name of the module."""
    names = path.relative_to(ROOT).with_suffix("").parts
    return names[:-1] if names[-1] == "__init__" else names


def part_of(names: tuple[str, ...]) -> str:
    """Return the folder or file directly under canon_trl; the `__init__.py` of the package is `canon_trl`."""
    return names[1] if len(names) > 1 else names[0]


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield the modules that a module imports, including imports in functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(name.name.split(".")) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield tuple(str(node.module).split("."))


def edges_of_code() -> set[Edge]:
    """Return the imports between different parts of the package."""
    edges = {
        (part_of(parts(path)), part_of(names))
        for path in MODULES
        for names in imported(path)
        if names[0] == "canon_trl"
    }
    return {(importer, part) for importer, part in edges if importer != part}


def edges_of_page(page: str) -> list[Edge]:
    (block,) = re.findall(r"```text\n((?:\w+ +-> .*\n)+)```", page)
    return [
        (importer.strip(), part.strip())
        for importer, named in (line.split("->") for line in block.splitlines())
        for part in named.split(",")
    ]


def test_the_page_lists_the_imports_between_the_parts():
    listed = edges_of_page(PAGE)
    assert len(listed) == len(set(listed)), "an import is listed twice"
    assert set(listed) == edges_of_code(), "run docs/generate.py and docs/architecture_picture.py"


def test_the_picture_shows_the_listed_imports():
    ids = [element.get("id", "") for element in ET.parse(PICTURE).iter()]
    drawn = {tuple(identifier.split("->")) for identifier in ids if "->" in identifier}
    assert drawn == set(edges_of_page(PAGE)), "run docs/architecture_picture.py"
    text = " ".join(ET.parse(PICTURE).getroot().itertext())
    assert all(part in text for edge in drawn for part in edge)


def test_no_imports_are_circular():
    edges = edges_of_code()
    left = {part for edge in edges for part in edge}
    while free := {part for part in left if not any(edge[0] == part and edge[1] in left for edge in edges)}:
        left -= free
    assert not left


@pytest.mark.parametrize("part", TORCH_ONLY)
def test_methods_import_no_library_but_torch(part):
    modules = [path for path in MODULES if part_of(parts(path)) == part]
    assert modules
    foreign = {"trl", "transformers", "accelerate", "datasets", "peft", "vllm", "numpy", "scipy", "pandas"}
    named = {names[0] for path in modules for names in imported(path)}
    assert not named & foreign


def private_members(cls: type) -> set[str]:
    """Return the private names that the class and its bases in TRL and transformers define or set."""
    found = set()
    for base in cls.__mro__:
        if base.__module__.split(".")[0] in ("trl", "transformers"):
            tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base)))
            found |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value)}
            found |= vars(base).keys()
    return {name for name in found if re.match(r"_[^_]", name)}


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def test_only_the_hook_uses_private_members_of_trl():
    private = private_members(GRPOTrainer) | private_members(GRPOConfig)
    assert {"_compute_loss", "_metrics", "_save_checkpoint", "_generate"} <= private
    touched = {}
    for path in MODULES:
        tree = ast.walk(ast.parse(path.read_text()))
        names = {
            getattr(node, "attr", None) or getattr(node, "name", None) or getattr(node, "id", None) for node in tree
        }
        touched[str(path.relative_to(ROOT))] = names & private - MEANT_FOR_SUBCLASSES - OF_OUR_OWN.get(
            str(path.relative_to(ROOT)), set()
        )
    hook = {path for path in touched if path.startswith("canon_trl/hook/")}
    listed = {member.name for member in MEMBERS} - MEANT_FOR_SUBCLASSES
    assert set().union(*map(touched.pop, hook)) == listed & private, "canon_trl/hook/members.py lists them"
    assert {path: names for path, names in touched.items() if names} == {}


def test_the_page_lists_the_overridden_private_members():
    hook = [base for base in PluggableGRPOTrainer.__mro__ if base.__module__.startswith("canon_trl.hook")]
    overridden = {name for base in hook for name, member in vars(base).items() if inspect.isfunction(member)}
    overridden = {name for name in overridden if re.match(r"_[^_]", name) and hasattr(GRPOTrainer, name)}
    rows = re.findall(r"^\| (`_.*?) \|", PAGE, flags=re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == overridden


def test_nothing_private_is_imported_from_trl():
    named = [
        f"{path.name}: {node.module}.{name.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "trl"
        for name in node.names
        if name.name.startswith("_") or "._" in str(node.module)
    ]
    assert named == []


def test_stages_do_not_import_each_other_and_the_hook_calls_each_one():
    """The arithmetic within prompt groups, `advantages/groups.py`, is for all of them."""
    edges = edges_of_code()
    stages = generate.stages()
    assert not {
        (part_of(parts(path)), names)
        for path in MODULES
        for names in imported(path)
        if part_of(parts(path)) in stages
        and names[0] == "canon_trl"
        and part_of(names) in {*stages, "hook", "config"} - {part_of(parts(path))}
        and names != ("canon_trl", "advantages", "groups")
    }
    for folder, stage in stages.items():
        assert stage.called_in.startswith("hook/") and (ROOT / "canon_trl" / stage.called_in).exists()
        assert ("hook", folder) in edges

"""The code blocks of the README and of the pages in docs/ run, and their links, options and YAML are valid.

The blocks of a page run in order, in a copy of the repository and in one new process: Python in one namespace, Bash in
the root of the copy. A block that cannot run has `<!-- not run: REASON -->` on the line before it and is only parsed.
SHORTENED adds options after the name of a script to shorten its run; the same option on the page takes precedence. A
`make` target that launches an example runs the commands of its recipe; other targets only have to exist. Either the
parser of the recipes or accelerate must accept YAML blocks.
"""

import ast
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from markdown_it import MarkdownIt
from markdown_it.token import Token
from trl import ModelConfig

from canon_trl import AStarPOConfig, CANONConfig
from canon_trl.cli.arguments import RecipeArguments, parse
from canon_trl.cli.benchmarks import EvaluationArguments, read_benchmarks
from canon_trl.cli.train import AStarPOArguments, TrainArguments
from canon_trl.cli.values import ValueArguments
from canon_trl.recipes import recipe_names

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKDOWN = MarkdownIt("commonmark").enable("table")
MARK = re.compile(r"<!-- not run: (.+) -->\s*")
RUN = ("python", "bash")
NOT_RUN = ("text", "json", "bibtex", "toml", "markdown", "diff")
SHORTENED = {
    "examples/train_canon.py": "--max_steps 2 --task_eval_prompts 16",
    "examples/train_astar_po.py": "--max_steps 2",
    "examples/estimate_values.py": "--task_train_prompts 256 --task_eval_prompts 16",
    "examples/evaluate_model.py": "--task_eval_prompts 16",
}
OPTIONS = {
    "examples/train_canon.py": (TrainArguments, CANONConfig),
    "examples/train_astar_po.py": (AStarPOArguments, AStarPOConfig),
    "examples/estimate_values.py": (ValueArguments,),
    "examples/evaluate_model.py": (EvaluationArguments,),
}
# A new process per page, forked from one that has already imported the modules that every page needs.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["canon_trl.evaluation", "canon_trl.tasks"])


@dataclass(frozen=True)
class Block:
    """A fenced code block of a page."""

    page: Path
    line: int
    language: str
    code: str
    why_not_run: str | None

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def tokens(page: Path) -> list[Token]:
    return MARKDOWN.parse(page.read_text())


def blocks(page: Path) -> list[Block]:
    found = tokens(page)
    marks = [MARK.fullmatch(token.content) for token in found]
    return [
        Block(page, token.map[0] + 1, token.info, token.content, before and before[1])
        for token, before in zip(found, [None, *marks], strict=False)
        if token.type == "fence"
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [
    (block, line)
    for block in BLOCKS
    if block.language == "bash"
    for line in block.code.replace("\\\n", " ").splitlines()
    if line.strip()
]


def as_run(line: str) -> str:
    """Return a line of Bash in the form in which the test runs it."""
    command, *arguments = shlex.split(line, comments=True) or [":"]
    assert command not in ("pip", "git"), f"{line!r} changes the environment; mark the block"
    if command == "make":
        recipe_of = {target: recipe_lines(target) for target in arguments}
        started = [each for lines in recipe_of.values() for each in lines if each.startswith("accelerate launch")]
        line = "; ".join(started) or ":"
    for script, options in SHORTENED.items():
        line = line.replace(script, f"{script} {options}")
    return line


def recipe_lines(target: str) -> list[str]:
    rule = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert rule, f"the Makefile has no target {target!r}"
    return [line.strip().removeprefix("$(BIN)/") for line in rule[1].splitlines()]


def copy_repository(folder: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, stdout=-1
    )
    for name in listed.stdout.decode().split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def starts_a_script(page: Path) -> bool:
    """Whether a block of the page starts training, evaluation or a comparison in a separate process."""
    started = [block.code for block in blocks(page) if block.language == "bash" and not block.why_not_run]
    return any(re.search(r"\b(?:examples|benchmarks)/\w+\.py|make train", code) for code in started)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * starts_a_script(page), id=name_of(page))
        for page in PAGES
        if any(block.language in RUN for block in blocks(page))
    ],
)
def test_blocks_run(page, tmp_path):
    steps = []
    for block in blocks(page):
        if block.why_not_run or block.language not in RUN:
            continue
        code = block.code
        if block.language == "bash":
            code = "\n".join(as_run(line) for line in code.replace("\\\n", " ").splitlines())
        steps.append((block.language, name_of(page), block.line, code))
    copy, log = tmp_path / "copy", tmp_path / "log"
    copy_repository(copy)
    process = PROCESSES.Process(target=run_in_order, args=(steps, copy, log))
    process.start()
    process.join()
    assert process.exitcode == 0, log.read_text()[-6000:]


def run_in_order(steps: list[tuple[str, str, int, str]], folder: Path, log: Path) -> None:
    """Run blocks `(language, page, line, code)` in the folder and write their output to the log."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    of_bash = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    namespace = {"__name__": "__main__"}
    for language, page, line, code in steps:
        print(f"--- {page}:{line}", flush=True)
        if language == "python":
            exec(compile("\n" * line + code, page, "exec"), namespace)
        else:
            subprocess.run(["bash", "-euxo", "pipefail", "-c", code], env=of_bash, check=True)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.why_not_run], ids=str)
def test_blocks_that_do_not_run_parse(block):
    if block.language == "python":
        ast.parse(block.code)
    elif block.language == "bash":
        subprocess.run(["bash", "-n", "-c", block.code], check=True)
    else:
        assert block.language == "yaml", f"{block} never runs; remove the mark"
        yaml.safe_load(block.code)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_language_and_every_mark_a_block(page):
    for block in blocks(page):
        assert block.language in (*RUN, "yaml", *NOT_RUN), f"{block} has the language {block.language!r}"
    assert sum(block.why_not_run is not None for block in blocks(page)) == page.read_text().count("<!-- not run"), (
        "a mark must be on the line before a block and give a reason"
    )


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml" and not b.why_not_run], ids=str)
def test_parsers_accept_yaml_blocks(block, tmp_path):
    path = tmp_path / "block.yaml"
    given = yaml.safe_load(block.code)
    if "distributed_type" in given:
        path.write_text(block.code)
        load_config_from_file(str(path))
        return
    named = "dataset_name" in given or "benchmarks" in given
    data = {"model_name_or_path": "m", "reward_funcs": ["accuracy_reward"]} if named else {"task": "arithmetic"}
    path.write_text(yaml.safe_dump({"output_dir": "outputs/block", **data, **given}))
    script = next((each for each in OPTIONS if set(given) <= options_of(each)), None)
    assert script is not None, {each: sorted(set(given) - options_of(each)) for each in OPTIONS}
    if script == "examples/evaluate_model.py":
        read_benchmarks(["--config", str(path)])
    else:
        cpu = [] if script == "examples/estimate_values.py" else ["--use_cpu", "true"]
        parse(["--config", str(path), *cpu], *OPTIONS[script], command="", embedded="")


def options_of(script: str) -> set[str]:
    kinds = (RecipeArguments, *OPTIONS[script], ModelConfig)
    return {option.name for kind in kinds for option in fields(kind)}


@pytest.mark.parametrize("script", OPTIONS)
def test_options_of_commands_exist(script):
    """This includes commands that do not run."""
    known = options_of(script) | {"config"}
    for block, line in COMMANDS:
        _, found, flags = line.partition(script)
        given = re.findall(r"(?<=\s--)\w+", re.split(r"\s(?:&&|#)", flags)[0]) if found else []
        assert set(given) <= known, (str(block), sorted(set(given) - known))


def test_recipes_of_commands_exist():
    """A name without a folder or suffix is that of a shipped recipe."""
    named = {name for _, line in COMMANDS for name in re.findall(r"\s--config (\S+)", line)}
    shipped = {name for name in named if "/" not in name and not name.endswith(".yaml")}
    assert len(shipped) > 5 and shipped <= set(recipe_names())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_named_files_exist(page):
    inline = [child for token in tokens(page) for child in token.children or []]
    links = [str(child.attrs.get("href") or child.attrs.get("src") or "") for child in inline]
    linked = [link.split("#")[0] for link in links if not re.match(r"\w+:", link)]
    missing = [link for link in linked if link and not (page.parent / link).exists()]
    folders = r"(?:examples|accelerate_configs|benchmarks(?!/results)|tests|docs)/"
    named = re.findall(rf"(?<![\w/.-]){folders}[\w./-]*\w", page.read_text())
    missing += [path for path in named if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("language", RUN)
def test_the_readme_has_blocks_that_run(language):
    assert any(block.language == language and not block.why_not_run for block in blocks(ROOT / "README.md"))

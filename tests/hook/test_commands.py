"""`canon-trl COMMAND`, `python -m canon_trl COMMAND` and the scripts in examples/ run the same commands."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from recipe_runs import RUN
from toy import TASK

import canon_trl
from canon_trl import cli
from canon_trl.cli import env, errors, interrupts, train
from canon_trl.recipes import read_recipe

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def test_the_package_is_a_program():
    done = subprocess.run([sys.executable, "-m", "canon_trl"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(f"\n  {command} " in done.stdout for command in cli.COMMANDS)


def test_the_console_script_is_the_same_program():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["canon-trl"].partition(":")
    assert getattr(importlib.import_module(module), function) is cli.main


def test_the_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"{canon_trl.__version__}\n"


def test_a_reader_that_has_ended_is_no_error():
    command = [sys.executable, "-m", "canon_trl", "recipes", "show", "arithmetic"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == errors.CLOSED_PIPE


def ended(capsys, *argv):
    """Run a command that fails; return its exit code and the last line on the screen."""
    with pytest.raises(SystemExit) as end:
        cli.main([*argv])
    return end.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evalute"], f"unknown command 'evalute' (did you mean 'evaluate'?); {cli.USAGE}"),
        (["train", "--canon-mus", "1"], "unknown option '--canon-mus' (did you mean '--canon_mu'?)"),
        (["train", "--canon_mus=1"], "unknown option '--canon_mus' (did you mean '--canon_mu'?)"),
        (["train", "arithmetic"], "unexpected argument 'arithmetic'; write --OPTION VALUE, and --config for a recipe"),
        (["train", "--max_steps", "ten"], "argument --max_steps/--max-steps: invalid int value: 'ten'"),
        (["train", "--max_steps"], "argument --max_steps/--max-steps: expected one argument"),
        (["train", "--config"], "--config is given without a value; it must be the path or the name of a recipe"),
        (
            ["probe", "--config", "arithmetc"],
            "--config='arithmetc' is neither a file nor a shipped recipe (did you mean 'arithmetic'?)",
        ),
        (["values", "--num_samples", "0"], "num_samples=0 must be at least 1"),
        (["compare", "x.yaml", "--jobs", "-1"], "jobs=-1 must be at least 0 and threads=1 at least 1"),
        (
            ["evaluate", "--task", "arithmetic", "--model_name_or_path", "no/such/folder"],
            "model_name_or_path='no/such/folder': there is no such folder, and a model on the Hub has the form "
            "'owner/name'",
        ),
    ],
)
def test_an_error_of_the_user_ends_in_one_line(capsys, argv, message):
    assert ended(capsys, *argv) == (2, f"error: {message}")


def test_debug_shows_the_traceback(capsys):
    for argv in (["--debug", "train", "--max_steps"], ["train", "--debug", "--max_steps"]):
        with pytest.raises(SystemExit):
            cli.main(argv)
        shown = capsys.readouterr().err
        assert shown.startswith("Traceback") and shown.count("\nerror: ") == 1
    # with a value it is an option of transformers
    code, last = ended(capsys, "train", "--debug", "everywhere")
    assert code == 2 and last.startswith("error: ") and "'everywhere'" in last


def fault(kind):
    """Return an error as Python raises it: by a check, by the interpreter, by a function written in C."""
    try:
        if kind == "check":
            raise TypeError("a check")
        if kind == "interpreter":
            len(3)
        int("three")
    except (TypeError, ValueError) as error:
        return error


def test_which_errors_are_the_users(monkeypatch):
    monkeypatch.setattr(errors.PROGRESS, "begun", False)
    expected = {"check": True, "interpreter": False, "C": True}
    assert {kind: errors.is_user_error(fault(kind)) for kind in expected} == expected
    errors.begin_work()
    assert not any(errors.is_user_error(fault(kind)) for kind in expected)  # raised here, not in canon_trl
    with pytest.raises(ValueError) as ours:
        read_recipe("no_such_recipe")
    assert errors.is_user_error(ours.value)


def test_import_paths_start_in_the_working_folder(tmp_path, monkeypatch):
    """As with `python -m canon_trl`; the console script has its own folder on the path instead."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.setattr(env, "run", lambda argv: None)
    cli.main(["env"])
    cli.main(["env"])
    assert sys.path.count(str(tmp_path)) == 1 and sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, AssertionError, FloatingPointError])
def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, kind):
    def fail(argv):
        raise kind("a fault")

    monkeypatch.setattr(train, "run", fail)
    with pytest.raises(kind, match="a fault"):
        cli.main(["train"])


def test_a_message_and_its_notes_are_one_line():
    error = ValueError("two\n  lines")
    error.add_note("in reward function 'f'")
    assert errors.in_one_line(error) == "two lines; in reward function 'f'"
    error = ValueError("reward function 'f' returned nothing")
    error.add_note("in reward function 'f'")
    assert errors.in_one_line(error) == "reward function 'f' returned nothing"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command(command, capsys):
    try:
        cli.main([command, "--help"])
    except SystemExit as end:
        assert not end.code
    assert capsys.readouterr().out.startswith(f"usage: canon-trl {command}")


def test_help_is_grouped(capsys):
    for trainer, own in (("canon", ["CANON", "Methods of the stages"]), ("astar_po", ["A*-PO"])):
        with pytest.raises(SystemExit):
            cli.main(["train", "--trainer", trainer, "--help"])
        shown = capsys.readouterr().out
        of_others = ["The run", "TRL's GRPO", "Trainer of transformers", "Model"]
        assert re.findall(r"^(\S.*):$", shown, flags=re.M) == [
            *("options", "Options of this command", "Data and rewards", *own, *of_others)
        ]
        places = [shown.index(f"\n{title}:") for title in ("Data and rewards", own[0], "TRL's GRPO", "Model")]
        options = ("--reward_funcs", {"canon": "--canon_mu ", "astar_po": "--beta2"}[trainer], "--beta ", "--use_peft")
        assert all(place < shown.index(f"\n  {option}") for place, option in zip(places, options, strict=True))
        assert shown.index("--learning_rate") > shown.index("\nTrainer of transformers:") > shown.index("--loss_type ")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--seed", "1"], ["--seed", "1"]),
        (["--resume_from_checkpoint", "a", "--seed", "1"], ["--seed", "1"]),
        (["--seed", "1", "--resume-from-checkpoint=a"], ["--seed", "1"]),
    ],
)
def test_the_command_that_resumes_names_one_checkpoint(given, kept):
    assert interrupts.without_resume(given) == kept


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short_and_shadows_no_library(script):
    """The folder of a script is the first on its path."""
    assert len(script.read_text().splitlines()) <= 20
    assert importlib.util.find_spec(script.stem) is None
    assert script.stem not in sys.stdlib_module_names | {"evaluate", "sampling", "recipe"}


def test_flags_and_recipes_name_the_trainer(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("base: arithmetic_astar_po\nbeta1: 0.25\n")
    given = ["--config", str(path)]
    assert train.named_trainer(given) is train.named_trainer(["--trainer=astar_po"]) is train.TRAINERS["astar_po"]
    assert train.named_trainer([]) is train.named_trainer([*given, "--trainer", "canon"]) is train.TRAINERS["canon"]
    with pytest.raises(ValueError, match=r"trainer='astarpo' must be one of .* \(did you mean 'astar_po'\?\)"):
        train.named_trainer(["--trainer", "astarpo"])
    with pytest.raises(ValueError, match=r"run\.yaml: unknown option 'beta1'"):
        train.main([*given, "--trainer", "canon"])


def test_main_reads_the_flags_of_the_process(tmp_path, monkeypatch):
    flags = [*RUN, "--output_dir", str(tmp_path), "--max_steps", "1", "--eval_strategy", "no"]
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    trainer = train.main()
    assert trainer.state.global_step == 1 and trainer.model.config._name_or_path == str(TASK.model_path)

"""`python -m canon_trl COMMAND` and the scripts in examples/ run the same commands."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_runs import RUN
from toy import TASK

from canon_trl import cli
from canon_trl.cli import train

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def test_the_package_is_a_program():
    done = subprocess.run([sys.executable, "-m", "canon_trl"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(f"\n  {command} " in done.stdout for command in cli.COMMANDS)


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["evalute"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'evalute' (did you mean 'evaluate'?); usage: ")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: python -m canon_trl {command} ") and "--reward_funcs" in shown


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

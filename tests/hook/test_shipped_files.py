"""`canon-trl recipes` and `canon-trl env`."""

import importlib
from importlib.metadata import version
from pathlib import Path

import pytest

from canon_trl import cli, trl_release
from canon_trl.cli import env, recipes
from canon_trl.recipes import FOLDER, read_recipe, recipe_names

CONFIGS = Path(__file__).parents[2] / "accelerate_configs"


def test_the_list_has_every_file_with_its_first_sentence(capsys):
    cli.main(["recipes"])
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    named = {line.split()[0]: line.split(maxsplit=1)[1] for line in shown if "  " in line}
    assert named.keys() == {*recipe_names(), *(path.stem for path in CONFIGS.glob("*.yaml"))}
    assert named["qwen2.5_math_7b_w_reinforce"] == "W-REINFORCE: wrong answers count in full and right ones a tenth"
    assert named["zero2"].startswith("DeepSpeed ZeRO-2 on the 8 GPUs of one machine: shards gradients and optimizer")
    assert all(len(about) > 20 for about in named.values())


@pytest.mark.parametrize(("name", "path"), [("verbosity", FOLDER), ("zero3.yaml", CONFIGS)])
def test_show_prints_the_file(capsys, name, path):
    cli.main(["recipes", "show", name])
    assert capsys.readouterr().out == (path / f"{name.removesuffix('.yaml')}.yaml").read_text()


def test_a_copy_can_be_edited_and_replaces_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["recipes", "copy", "arithmetic"])
    cli.main(["recipes", "copy", "zero2", "configs/mine.yaml"])
    cli.main(["recipes", "copy", "qwen2.5_math_7b_clip_cov", str(tmp_path)])
    assert capsys.readouterr().out.split()[:2] == ["arithmetic.yaml", "configs/mine.yaml"]
    assert Path("configs/mine.yaml").read_text() == (CONFIGS / "zero2.yaml").read_text()
    for name in ("arithmetic", "qwen2.5_math_7b_clip_cov"):  # the second one has a base
        assert read_recipe(tmp_path / f"{name}.yaml") == read_recipe(name)
    with pytest.raises(SystemExit) as end:
        cli.main(["recipes", "copy", "verbosity", "arithmetic.yaml"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: arithmetic.yaml exists; name another file, or remove it\n"


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["shwo", "zero3"], "unknown action 'shwo' (did you mean 'show'?); usage: canon-trl recipes ["),
        (["show", "zero4"], "there is no recipe or accelerate config 'zero4' (did you mean 'zero"),
        (["show"], "show takes a NAME; usage: "),
        (["copy"], "copy takes a NAME and a PATH; usage: "),
        (["copy", "zero3", "a", "b"], "copy takes a NAME and a PATH; usage: "),
    ],
)
def test_bad_arguments(capsys, argv, error):
    with pytest.raises(SystemExit) as end:
        cli.main(["recipes", *argv])
    assert end.value.code == 2 and capsys.readouterr().err.startswith(f"error: {error}")


def test_a_wheel_has_the_accelerate_configs_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "PACKAGE", tmp_path / "canon_trl")
    (tmp_path / "canon_trl" / "accelerate_configs").mkdir(parents=True)
    (tmp_path / "canon_trl" / "accelerate_configs" / "tpu.yaml").write_text("# Eight chips. More.\na: 1\n")
    (found,) = list(recipes.files().values())[1].values()
    assert found.stem == "tpu" and recipes.first_sentence(found) == "Eight chips"


def test_env_prints_versions_and_devices(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    cli.main(["env"])
    shown = capsys.readouterr().out
    found = dict(line.removeprefix("- ").split(": ", 1) for line in shown.splitlines())
    assert found["canon-trl"] == version("canon-trl") and found["torch"] == version("torch")
    oldest, newest = (".".join(map(str, each)) for each in (trl_release.OLDEST, trl_release.NEWEST))
    assert found["trl"] == f"{version('trl')} (supported: {oldest} to {newest})"
    assert {"Python", "platform", "devices", "peft", "datasets", "vllm", "deepspeed"} <= found.keys()
    assert "hf_secret" not in shown


def test_env_names_an_unsupported_release_of_trl(monkeypatch):
    def fails(name):
        raise ImportError("canon_trl supports TRL 1.9 to 1.16, but TRL 2.0 is installed")

    monkeypatch.setattr(env, "import_module", fails)
    assert env.installed("trl").endswith(
        "(not supported: canon_trl supports TRL 1.9 to 1.16, but TRL 2.0 is installed)"
    )
    assert env.installed("no-such-package") == "not installed"


@pytest.mark.parametrize("command", ["recipes", "env"])
def test_help(capsys, command):
    cli.main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: canon-trl {command}")
    assert importlib.import_module(f"canon_trl.cli.{command}").__doc__.splitlines()[0][-1] in ".:"

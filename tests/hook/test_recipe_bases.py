"""How recipes are found and read: names, bases, and errors that name the file and the option."""

import os

import pytest
import yaml
from recipe_runs import parse_canon

from canon_trl.recipes import FOLDER, find_recipe, read_recipe, recipe_names

BASE = "qwen2.5_math_7b"


def write(path, text):
    path.write_text(text)
    return path


def own_options(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", [name for name in recipe_names() if "base" in own_options(name)])
def test_an_overlay_is_short_and_changes_what_it_says(name):
    own, given = own_options(name), read_recipe(name)
    base = read_recipe(own.pop("base"))
    assert 2 <= len(own) <= 7, "3 to 8 lines with the base"
    assert given == base | own
    assert not {option for option, value in own.items() if base.get(option) == value}, "repeats its base"
    comments = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert 1 <= len(comments) <= 3


def test_all_recipes_of_one_model_have_one_base():
    overlays = [name for name in recipe_names() if name.startswith(f"{BASE}_")]
    assert overlays and all("base" in own_options(name) for name in overlays)
    base = read_recipe(BASE)
    assert all(read_recipe(name).keys() >= base.keys() for name in overlays)
    outputs = {read_recipe(name)["output_dir"] for name in [BASE, *overlays]}
    assert outputs == {f"outputs/{name}" for name in [BASE, *overlays]}


def test_a_recipe_is_named_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = FOLDER / "arithmetic.yaml"
    assert find_recipe("arithmetic") == find_recipe("arithmetic.yaml") == find_recipe(shipped) == shipped
    write(tmp_path / "arithmetic.yaml", "task: countdown\n")
    assert read_recipe("arithmetic.yaml") == {"task": "countdown"}, "a file comes first"
    assert read_recipe("arithmetic")["task"] == "arithmetic"


def test_a_base_is_a_neighbour_or_a_shipped_recipe(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "first.yaml", "base: arithmetic\ncanon_mu: 0.25\nmax_steps: 3\n")
    write(tmp_path / "sub" / "second.yaml", "base: ../first.yaml\nmax_steps: 5\n")
    arguments, training, _ = parse_canon("--config", str(tmp_path / "sub" / "second.yaml"))
    assert (arguments.task, training.canon_mu, training.max_steps) == ("arithmetic", 0.25, 5)
    assert parse_canon("--config", str(tmp_path / "first.yaml"), "--max_steps", "7")[1].max_steps == 7


def test_variables_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("CANON_TEST_VARIABLE", raising=False)
    path = write(tmp_path / "run.yaml", "base: arithmetic\nenv: {CANON_TEST_VARIABLE: 3}\n")
    parse_canon("--config", str(path))
    assert os.environ.pop("CANON_TEST_VARIABLE") == "3"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "arithmetik",
            r"--config='arithmetik' is neither a file nor a shipped recipe \(did you mean 'arithmetic'\?\)",
        ),
        ("examples/configs/verbosity.yaml", r"neither a file nor a shipped recipe \(did you mean 'verbosity'\?\)"),
        ("zzz", "--config='zzz' is neither a file nor a shipped recipe$"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        parse_canon("--config", name)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "base: a.yaml"}, r"a\.yaml: base='a\.yaml' leads back to a\.yaml; bases must not form a cycle"),
        ({"a": "base: b.yaml", "b": "base: a.yaml"}, r"b\.yaml: base='a\.yaml' leads back to a\.yaml"),
        ({"a": "base: none.yaml"}, r"a\.yaml: base='none\.yaml' is neither a file nor a shipped recipe"),
        ({"a": "base: countdwn"}, r"a\.yaml: base='countdwn' is .* \(did you mean 'countdown'\?\)"),
        ({"a": "base: [b.yaml]", "b": ""}, r"a\.yaml: base=\['b\.yaml'\] must be the name of one recipe"),
        ({"a": "task: arithmetic\ncanon_nu: 1"}, r"a\.yaml: unknown option 'canon_nu' \(did you mean 'canon_mu'\?\)"),
        ({"a": "base: b.yaml", "b": "max_step: 1"}, r"b\.yaml: unknown option 'max_step' \(did you mean 'max_steps'"),
        ({"a": "base: arithmetic_values"}, r"arithmetic_values\.yaml: unknown option 'num_samples'"),
        ({"a": "- task"}, r"a\.yaml must contain a YAML mapping"),
        ({"a": "base: b.yaml", "b": ""}, r"b\.yaml must contain a YAML mapping"),
        ({"a": "task: [arithmetic"}, r"a\.yaml is not valid YAML: "),
        ({"a": "task: arithmetic\nenv: 3"}, r"env=3 must map names of environment variables to values"),
    ],
)
def test_errors_name_the_file_and_the_option(tmp_path, files, message):
    for name, text in files.items():
        write(tmp_path / f"{name}.yaml", text)
    with pytest.raises(ValueError, match=message):
        parse_canon("--config", str(tmp_path / "a.yaml"))

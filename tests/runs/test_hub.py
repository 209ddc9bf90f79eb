"""Pushed models load from the Hub, their cards describe the run, and a rejected upload loses nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub import LocalHub, local_hub
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file
from toy import make_trainer

from canon_trl.advantages import ESTIMATORS
from canon_trl.cli import evaluate
from canon_trl.policy_losses import covariance
from canon_trl.publishing.citation import package_citation
from canon_trl.publishing.hub import upload_command

ROOT = Path(__file__).parents[2]
TRAIN = ["--task", "arithmetic", "--task_train_prompts", "32", "--task_eval_prompts", "8", "--use_cpu", "true"]
TRAIN += ["--bf16", "false", "--max_steps", "2", "--num_generations", "4", "--per_device_train_batch_size", "8"]
TRAIN += ["--max_completion_length", "8", "--learning_rate", "1e-3", "--report_to", "none", "--save_strategy", "no"]
TRAIN += ["--logging_steps", "1"]
PUSH_BASE = """
from transformers import AutoModelForCausalLM, AutoTokenizer
from canon_trl.tasks import TASKS
for kind in (AutoModelForCausalLM, AutoTokenizer):
    kind.from_pretrained(TASKS["arithmetic"].model_path).push_to_hub("me/base")
"""
LOAD_BACK = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
name, folder = sys.argv[1:]
here, there = (AutoModelForCausalLM.from_pretrained(each) for each in (folder, name))
wanted = dict(here.named_parameters())
for key, value in there.named_parameters():
    assert torch.equal(value, wanted.pop(key)), key
assert not wanted
assert AutoTokenizer.from_pretrained(name)("1+2=") == AutoTokenizer.from_pretrained(folder)("1+2=")
print("loaded", sum(value.numel() for value in there.parameters()))
"""


def run(command: list[str] | str, hub: LocalHub, home: Path, *, fails: bool = False) -> subprocess.CompletedProcess:
    """Run a process that uses the local Hub and its own cache folder."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | hub.environment | {"HF_HOME": str(home), "PATH": programs}
    shell = isinstance(command, str)
    done = subprocess.run(command, shell=shell, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) == fails, done.stderr[-4000:]
    return done


def train(hub: LocalHub, folder: Path, *flags: str, launcher: list[str] | None = None, fails: bool = False):
    command = [sys.executable, *(launcher or []), str(ROOT / "examples" / "train_canon.py"), *TRAIN]
    command += ["--model_name_or_path", "me/base", "--output_dir", str(folder), "--push_to_hub", "true"]
    return run([*command, "--hub_model_id", f"me/{folder.name}", *flags], hub, folder.parent / "home", fails=fails)


def load_back(hub: LocalHub, folder: Path) -> str:
    command = [sys.executable, "-c", LOAD_BACK, f"me/{folder.name}", str(folder)]
    return run(command, hub, folder.parent / "home").stdout


def retry_command(message: str) -> str:
    (command,) = re.findall(r"^    (hf upload .*)$", message, flags=re.MULTILINE)
    return command


def uploaded(folder: Path) -> dict[str, bytes]:
    """Return the files of the folder that belong on the Hub."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with local_hub() as running:
        run([sys.executable, "-c", PUSH_BASE], running, tmp_path_factory.mktemp("base"))
        yield running


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """The output folder of a pushed run with evaluation."""
    folder = tmp_path_factory.mktemp("pushed") / "whole"
    train(hub, folder, "--eval_strategy", "steps", "--eval_steps", "1", "--policy_loss", "kl_cov")
    return folder


def test_the_pushed_model_loads_with_equal_parameters(hub, pushed):
    assert "loaded 429440" in load_back(hub, pushed)
    files = hub.of("models/me/whole")
    assert files.items() >= uploaded(pushed).items()
    assert {"model.safetensors", "tokenizer.json", "README.md", "curves.png", "metrics.csv"} <= files.keys()
    base = load(hub.of("models/me/base")["model.safetensors"])
    trained = load(files["model.safetensors"])
    assert any((trained[name] != base[name]).any() for name in base), "training has changed nothing"
    assert files["curves.png"].startswith(b"\x89PNG")


def test_the_pushed_card_describes_the_run(hub, pushed):
    card = ModelCard(hub.of("models/me/whole")["README.md"].decode())
    assert {"trl", "canon_trl", "canon", "kl_cov"} <= {*card.data.tags}
    assert (card.data.base_model, card.data.library_name) == ("me/base", "transformers")
    history = json.loads((pushed / "metrics.json").read_text())
    accuracies = [entry for entry in history if "eval_rewards/accuracy/mean" in entry]
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(accuracies[-1]["eval_rewards/accuracy/mean"], abs=1e-6)
    assert (result.metric_name, result.dataset_name) == (
        "accuracy, mean over responses, after 2 steps",
        "held-out prompts",
    )
    for text in (
        "| `canon_metric` | `entropy` |",
        "| `canon_mu` | `1.0` |",
        "| `canon_alpha_group` | `lower` |",
        '| `kl_cov` | `{"fraction": 0.002,',
        "| `learning_rate` | `0.001` |",
        "Base model: [me/base](https://huggingface.co/me/base)",
        "Data: the embedded task arithmetic, 32 prompts",
        "![Learning curves](curves.png)",
        'model="me/whole"',
        ESTIMATORS["canon"].paper.citation,
        covariance.PAPER.citation,
        package_citation(),
    ):
        assert text in card.text, text
    for text in ("None", "hf_local", str(pushed.parent), "canon_cosine"):
        assert text not in card.content, text


def test_two_processes_push_once(hub, tmp_path):
    config = str(ROOT / "tests" / "configs" / "cpu_two_processes.yaml")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", "0"]
    train(hub, tmp_path / "two", launcher=launcher)
    assert hub.commits.count("models/me/two") == 1
    assert hub.of("models/me/two").items() >= uploaded(tmp_path / "two").items()
    assert "on 2 processes" in hub.of("models/me/two")["README.md"].decode()


def test_pushed_adapters_name_their_base_model(hub, tmp_path):
    folder = tmp_path / "adapters"
    train(hub, folder, "--use_peft", "true", "--lora_target_modules", "all-linear", "--lora_r", "4")
    files = hub.of("models/me/adapters")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= files.keys()
    assert "model.safetensors" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.library_name) == ("me/base", "peft")
    assert {"lora", "canon", "canon_trl"} <= {*card.data.tags}
    here = load_file(folder / "adapter_model.safetensors")
    assert any(value.any() for name, value in here.items() if "lora_B" in name), "the adapters have learnt nothing"
    load_back(hub, folder)


def test_a_rejected_upload_loses_nothing_and_the_printed_command_repeats_it(hub, tmp_path):
    """Training continues when uploads of checkpoints fail; the upload of the final model fails as well."""
    folder = tmp_path / "rejected"
    flags = ("--hub_strategy", "every_save", "--save_strategy", "steps", "--save_steps", "1")
    hub.status = 403
    try:
        done = train(hub, folder, *flags, fails=True)
    finally:
        hub.status = 200
    assert "a checkpoint was not uploaded; training continues: " in done.stderr
    assert hub.of("models/me/rejected") == {}
    history = json.loads((folder / "metrics.json").read_text())
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2]
    names = {"model.safetensors", "tokenizer.json", "README.md", "curves.png", "metrics.csv", "metrics.json"}
    assert names <= uploaded(folder).keys()
    message = done.stderr[done.stderr.index("The upload failed.") :]
    assert f"All files are in {folder}; after fixing the cause" in message
    run(retry_command(message), hub, tmp_path / "home")
    assert hub.of("models/me/rejected") == uploaded(folder), "all files, but no checkpoints"


FAILURES = """
import sys
from huggingface_hub import HfApi
from hub import local_hub
from canon_trl.publishing.hub import explained_failure
def upload(address):
    try:
        with explained_failure(sys.argv[1], "the command"):
            HfApi(endpoint=address).upload_folder(repo_id="me/any", folder_path=sys.argv[1])
    except Exception as error:
        print(type(error).__name__, getattr(getattr(error, "response", None), "status_code", None), *error.__notes__)
with local_hub() as hub:
    for hub.status in (401, 403, 500, 200):
        upload(hub.address)
upload("http://127.0.0.1:9")
"""


def test_every_failed_upload_names_the_command_that_repeats_it(hub, tmp_path):
    """Three uploads are rejected, one succeeds silently, and one finds no server."""
    (tmp_path / "README.md").write_text("---\ntags: [own]\n---\n")
    program = f"import sys; sys.path.append({str(ROOT / 'tests')!r}){FAILURES}"
    lines = run([sys.executable, "-c", program, str(tmp_path)], hub, tmp_path / "home").stdout.splitlines()
    note = f"The upload failed. All files are in {tmp_path}; after fixing the cause, upload them with:"
    assert [line.split(" The upload")[0] for line in lines[::2]] == [
        "HfHubHTTPError 401",
        "HfHubHTTPError 403",
        "HfHubHTTPError 500",
        "ConnectError None",
    ]
    assert all(note in line for line in lines[::2]) and lines[1::2] == ["    the command"] * 4


def test_the_upload_command_is_quoted_for_a_shell():
    assert upload_command("me/a", "my folder") == "hf upload me/a 'my folder' ."
    assert upload_command("me/a", "f", dataset=True, exclude=["_*", "x"], revision="b", private=True) == (
        "hf upload me/a f . --repo-type dataset --exclude '_*' --exclude x --revision b --private"
    )
    assert upload_command("me/a", "f/README.md", to="README.md") == "hf upload me/a f/README.md README.md"


def test_an_unplanned_push_saves_the_model_before_it_creates_the_repository(tmp_path):
    """Without the option `push_to_hub` the repository does not exist yet; if creating it fails, the model is saved."""
    trainer = make_trainer(tmp_path / "late", max_steps=1)
    trainer.train()
    with pytest.raises(Exception, match="offline mode is enabled") as failed:
        trainer.push_to_hub(dataset_name="the embedded task")
    (note,) = failed.value.__notes__
    assert note.endswith(f"    hf upload late {tmp_path / 'late'} . --exclude '_*' --exclude 'checkpoint-*'")
    assert {"model.safetensors", "tokenizer.json", "curves.png"} <= uploaded(tmp_path / "late").keys()
    assert "Data: the embedded task, 64 prompts" in (tmp_path / "late" / "README.md").read_text()


SCORE = ["--task", "arithmetic", "--num_samples", "4", "--max_completion_length", "8", "--update_card", "true"]


def accuracies(card: ModelCard) -> dict[str, tuple[str, float]]:
    found = [each for each in card.data.eval_results if each.dataset_name == "arithmetic"]
    assert len(found) == len(card.data.eval_results) - 1, "in addition to the result of training"
    return {each.metric_type: (each.metric_name, each.metric_value) for each in found}


def scores(folder: Path) -> dict[str, float]:
    summary = json.loads((folder / "summary.json").read_text())["arithmetic"]
    kinds = {"avg@4": summary["avg"], "majority@4": summary["majority_at_k"]["4"]["mean"]}
    return kinds | {f"pass@{k}": summary["pass_at_k"][k]["mean"] for k in ("1", "4")}


def test_an_evaluation_updates_the_card_of_a_folder(pushed, tmp_path):
    """A second evaluation replaces the first; a changed card does not make it another model."""
    for size in ("4", "6", "6"):
        flags = ["--task_eval_prompts", size, "--output_dir", str(tmp_path / size)]
        evaluate.main([*SCORE, *flags, "--model_name_or_path", str(pushed)])
        card = ModelCard.load(pushed / "README.md")
        found = accuracies(card)
        assert {metric: value for metric, (_, value) in found.items()} == pytest.approx(
            scores(tmp_path / size), abs=1e-6
        )
        assert found["avg@4"][0].startswith(f"avg@4, {size} prompts, temperature 1.0, 95% interval ")
        assert "## Method" in card.text


def test_a_full_disk_leaves_the_card_of_a_folder_unchanged(tmp_path):
    (tmp_path / "README.md").write_text("---\ntags:\n- own\n---\n\nwritten by hand\n")
    before = (tmp_path / "README.md").read_bytes()
    (tmp_path / ".README.md.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*README.md'"):
        evaluate.update_card(str(tmp_path), {}, tmp_path)
    assert (tmp_path / "README.md").read_bytes() == before


def test_an_evaluation_updates_the_card_on_the_hub(hub, pushed, tmp_path):
    """If the Hub rejects the update, the printed command repeats it."""
    command = [sys.executable, "-m", "canon_trl", "evaluate", *SCORE, "--model_name_or_path", "me/whole"]
    hub.status = 403
    try:
        size = ["--task_eval_prompts", "6", "--output_dir", str(tmp_path / "scores")]
        done = run([*command, *size], hub, pushed.parent / "home", fails=True)
    finally:
        hub.status = 200
    run(retry_command(done.stderr), hub, tmp_path / "home")
    card = ModelCard(hub.of("models/me/whole")["README.md"].decode())
    found = {metric: value for metric, (_, value) in accuracies(card).items()}
    assert found == pytest.approx(scores(tmp_path / "scores"), abs=1e-6)


def test_a_model_without_a_card_is_rejected_before_evaluation(tmp_path):
    with pytest.raises(ValueError, match=r"arithmetic_model has no README.md to write the accuracies into"):
        evaluate.main([*SCORE, "--output_dir", str(tmp_path / "scores")])
    assert not (tmp_path / "scores").exists()

"""What is pushed to the Hub can be loaded from it, says how it came about, and is not lost where it is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
from hub import LocalHub, local_hub
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file
from toy import make_trainer

from canon_trl.advantages import ESTIMATORS
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
    """A process whose Hub is the local one, and whose cache is empty at first."""
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


def retry_command(told: str) -> str:
    (command,) = re.findall(r"^    (hf upload .*)$", told, flags=re.MULTILINE)
    return command


def uploaded(folder: Path) -> dict[str, bytes]:
    """What of the folder belongs on the Hub."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with local_hub() as running:
        run([sys.executable, "-c", PUSH_BASE], running, tmp_path_factory.mktemp("base"))
        yield running


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """A run that was evaluated, and what it left here."""
    folder = tmp_path_factory.mktemp("pushed") / "whole"
    train(hub, folder, "--eval_strategy", "steps", "--eval_steps", "1", "--policy_loss", "kl_cov")
    return folder


def test_the_pushed_model_is_loaded_back_with_equal_parameters(hub, pushed):
    assert "loaded 429440" in load_back(hub, pushed)
    files = hub.of("models/me/whole")
    assert files.items() >= uploaded(pushed).items()
    assert {"model.safetensors", "tokenizer.json", "README.md", "curves.png", "metrics.csv"} <= files.keys()
    base = load(hub.of("models/me/base")["model.safetensors"])
    trained = load(files["model.safetensors"])
    assert any((trained[name] != base[name]).any() for name in base), "training has changed nothing"
    assert files["curves.png"].startswith(b"\x89PNG")


def test_the_pushed_card_says_how_the_model_came_about(hub, pushed):
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


def test_adapters_are_pushed_with_the_name_of_their_base_model(hub, tmp_path):
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


def test_a_refused_upload_loses_nothing_and_is_repeated_by_the_printed_command(hub, tmp_path):
    """Checkpoints are refused while it trains, which goes on, and so is the model at its end."""
    folder = tmp_path / "refused"
    flags = ("--hub_strategy", "every_save", "--save_strategy", "steps", "--save_steps", "1")
    hub.status = 403
    try:
        done = train(hub, folder, *flags, fails=True)
    finally:
        hub.status = 200
    assert "a checkpoint was not uploaded, training continues: " in done.stderr
    assert hub.of("models/me/refused") == {}
    history = json.loads((folder / "metrics.json").read_text())
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2]
    names = {"model.safetensors", "tokenizer.json", "README.md", "curves.png", "metrics.csv", "metrics.json"}
    assert names <= uploaded(folder).keys()
    told = done.stderr[done.stderr.index("The upload failed.") :]
    assert f"Everything that was to be uploaded is in {folder}; once the cause is gone" in told
    run(retry_command(told), hub, tmp_path / "home")
    assert hub.of("models/me/refused") == uploaded(folder), "all of it, and no checkpoints"


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


def test_whatever_ends_an_upload_the_command_that_repeats_it_is_told(hub, tmp_path):
    """Refused for three reasons, accepted without a word, and refused where nobody listens any more."""
    (tmp_path / "README.md").write_text("---\ntags: [own]\n---\n")
    program = f"import sys; sys.path.append({str(ROOT / 'tests')!r}){FAILURES}"
    lines = run([sys.executable, "-c", program, str(tmp_path)], hub, tmp_path / "home").stdout.splitlines()
    note = f"The upload failed. Everything that was to be uploaded is in {tmp_path}; once the cause is gone, this "
    assert [line.split(" The upload")[0] for line in lines[::2]] == [
        "HfHubHTTPError 401",
        "HfHubHTTPError 403",
        "HfHubHTTPError 500",
        "ConnectError None",
    ]
    assert all(note in line for line in lines[::2]) and lines[1::2] == ["    the command"] * 4


def test_the_command_is_one_for_a_shell():
    assert upload_command("me/a", "my folder") == "hf upload me/a 'my folder' ."
    assert upload_command("me/a", "f", dataset=True, exclude=["_*", "x"], revision="b", private=True) == (
        "hf upload me/a f . --repo-type dataset --exclude '_*' --exclude x --revision b --private"
    )
    assert upload_command("me/a", "f/README.md", to="README.md") == "hf upload me/a f/README.md README.md"


def test_a_push_that_was_not_planned_is_saved_before_the_repository_is_asked_for(tmp_path):
    """Without `push_to_hub` in the options nothing has made the repository; where that fails, the model is there."""
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
    assert len(found) == len(card.data.eval_results) - 1, "beside what training has logged"
    return {each.metric_type: (each.metric_name, each.metric_value) for each in found}


def scores(folder: Path) -> dict[str, float]:
    summary = json.loads((folder / "summary.json").read_text())["arithmetic"]
    kinds = {"avg@4": summary["avg"], "majority@4": summary["majority_at_k"]["4"]["mean"]}
    return kinds | {f"pass@{k}": summary["pass_at_k"][k]["mean"] for k in ("1", "4")}


def test_an_evaluation_writes_into_the_card_of_a_folder(pushed, tmp_path):
    """A second one takes the place of the first; that the card has changed makes it no other model."""
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


def test_a_disk_that_is_full_leaves_the_card_of_a_folder_as_it_was(tmp_path):
    (tmp_path / "README.md").write_text("---\ntags:\n- own\n---\n\nwritten by hand\n")
    before = (tmp_path / "README.md").read_bytes()
    (tmp_path / ".README.md.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*README.md'"):
        evaluate.update_card(str(tmp_path), {}, tmp_path)
    assert (tmp_path / "README.md").read_bytes() == before


def test_an_evaluation_writes_into_the_card_on_the_hub(hub, pushed, tmp_path):
    """Where that is refused, the printed command makes up for it."""
    command = [sys.executable, str(ROOT / "examples" / "evaluate.py"), *SCORE, "--model_name_or_path", "me/whole"]
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


def test_a_model_without_a_card_is_refused_before_it_is_evaluated(tmp_path):
    with pytest.raises(ValueError, match=r"arithmetic_model has no README.md, into which the accuracies could be"):
        evaluate.main([*SCORE, "--output_dir", str(tmp_path / "scores")])
    assert not (tmp_path / "scores").exists()

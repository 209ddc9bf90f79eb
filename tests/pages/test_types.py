"""mypy in strict mode checks a user's file against the types of this package and finds mistakes."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USERS_FILE = """\
import torch
from torch import Tensor

from canon_trl import CANONConfig, CANONTrainer, Rollout, requires_metrics
from canon_trl.advantages import ESTIMATORS, canon_advantage
from canon_trl.evaluation import pass_at_k
from canon_trl.tasks import TASKS


@requires_metrics("entropy")
def doubtful_answers_count_less(rollout: Rollout) -> Tensor:
    centred = rollout.rewards - rollout.rewards.nanmean(dim=1, keepdim=True)
    return centred / (1 + rollout.metrics["entropy"])


def number_of_signs(completions: list[str], **kwargs: object) -> list[float]:
    return [float(text.count("=")) for text in completions]


def train() -> None:
    task = TASKS["arithmetic"]
    args = CANONConfig(output_dir="outputs/typed", canon_mu=0.5, max_steps=1, bf16=False)
    given = str(task.model_path), task.reward, args, task.dataset("train", 64)
    CANONTrainer(*given, advantage_estimator=doubtful_answers_count_less).train()
    CANONTrainer(*given, canon_metric=number_of_signs)


advantages: Tensor = canon_advantage(torch.ones(2, 4), torch.rand(2, 4), mu=0.5, alpha_group="lower")
centred: Tensor = ESTIMATORS["dr_grpo"](Rollout.example(rewards=advantages))
solved: float = float(pass_at_k(8, [1, 2], 4).mean())
"""

MISTAKES = {
    'CANONConfig(output_dir="out", canon_metric=3)': "arg-type",
    'CANONConfig(output_dir="out", canon_nu=0.5)': "call-arg",
    'canon_advantage(torch.ones(2, 4), torch.rand(2, 4), alpha_group="middle")': "arg-type",
    "requires_metrics(3)": "arg-type",
    'requires_metrics("entropy")(3)': "type-var",
    "length: str = pass_at_k(8, 1, 4)": "assignment",
}


@pytest.fixture(scope="module")
def messages_by_line(tmp_path_factory) -> dict[int, list[str]]:
    """Return mypy's messages about the user's file with the mistakes appended, by line."""
    file = tmp_path_factory.mktemp("user") / "typed.py"
    file.write_text(USERS_FILE + "".join(f"{line}\n" for line in MISTAKES))
    options = ["--strict", "--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]
    command = [sys.executable, "-m", "mypy", *options, f"--cache-dir={ROOT / '.mypy_cache' / 'user'}", str(file)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    found: dict[int, list[str]] = {}
    for line in ended.stdout.splitlines()[:-1]:
        path, number, message = line.split(":", 2)
        assert Path(path).name == "typed.py", line
        found.setdefault(int(number), []).append(message)
    assert ended.stdout.splitlines()[-1].startswith("Found"), ended.stdout + ended.stderr
    return found


@pytest.mark.slow
def test_a_users_file_passes(messages_by_line):
    last = USERS_FILE.count("\n")
    assert {line: messages for line, messages in messages_by_line.items() if line <= last} == {}


@pytest.mark.slow
@pytest.mark.parametrize(("mistake", "code"), MISTAKES.items())
def test_a_users_mistake_is_found(messages_by_line, mistake, code):
    line = USERS_FILE.count("\n") + [*MISTAKES].index(mistake) + 1
    assert any(f"[{code}]" in message for message in messages_by_line[line])


def test_type_annotations_are_published():
    assert (files("canon_trl") / "py.typed").is_file()

"""A probe that samples with the real vLLM engine, for conversations with a pretrained language model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml


def starts_with_a_digit(completions, **kwargs):
    return [float(completion[0]["content"][:1].isdigit()) for completion in completions]


def long_words(completions, **kwargs):
    return [float(sum(len(word) > 4 for word in completion[0]["content"].split())) for completion in completions]


def test_a_probe_samples_with_vllm(smollm2, tmp_path):
    rows = [{"prompt": f"Answer with a number only: {i} + {i + 1} =", "answer": str(2 * i + 1)} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "model_name_or_path": str(smollm2),
        "reward_funcs": ["test_probe_vllm:starts_with_a_digit"],
        "canon_metric": "test_probe_vllm:long_words",
        "num_generations": 4,
        "max_completion_length": 8,
        "use_vllm": True,
        "bf16": False,
        "dtype": "float32",
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    options = {"enforce_eager": True, "max_model_len": 128}
    flags = ["--config", str(tmp_path / "run.yaml"), "--vllm_kwargs", json.dumps(options)]
    command = [sys.executable, "-m", "canon_trl", "probe", *flags, "--layers", "2", "--target_entropy", "0"]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    # A second engine in this process would end the groups of the one that the trainers share.
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads((tmp_path / "run" / "probe" / "probe.json").read_text())
    assert (report["prompts"]["num_prompts"], report["prompts"]["num_samples"]) == (6, 4)
    assert report["settings"]["sketched_layers"] == 14  # of the last two blocks
    assert 0 < report["prompts"]["accuracy"]["mean"] < 1
    assert 0 < report["metrics"]["test_probe_vllm:long_words"]["num_groups"] == 6

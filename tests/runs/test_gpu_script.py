"""The checks for a GPU start, as far as they run on a CPU, and say what they lack."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def check(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/gpu.py"), *arguments], capture_output=True, text=True
    )


@pytest.mark.slow
def test_checks_that_run_on_a_cpu():
    done = check("--cpu", "--only", "stages", "temperature", "fsdp2")
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("    {")]
    assert [result["outcome"] for result in found] == ["passed", "passed", "skipped"], done.stdout
    assert {"none", "policy_loss", "together"} < found[0].keys()
    assert set(found[1]["largest_difference"].values()) == {0.0}
    assert done.returncode == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="the check would run")
def test_a_check_without_a_gpu_is_skipped_with_the_reason():
    done = check("--only", "vllm_server")
    assert '{"outcome": "skipped", "reason": "needs 2 GPUs, found 0"}' in done.stdout
    assert done.returncode == 0

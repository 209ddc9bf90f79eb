"""Print what a bug report needs: versions, platform and devices. No model is loaded.

canon-trl env
"""

import os
import platform
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    *("canon-trl", "trl", "torch", "transformers", "accelerate", "peft", "datasets"),
    *("vllm", "deepspeed", "bitsandbytes", "liger-kernel", "math-verify"),
)
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "WORLD_SIZE")  # none holds a secret


def installed(package: str) -> str:
    """Return the version of a package; of TRL also whether canon_trl supports it."""
    try:
        found = version(package)
    except PackageNotFoundError:
        return "not installed"
    if package != "trl":
        return found
    try:
        release = import_module("canon_trl.trl_release")
    except ImportError as error:
        return f"{found} (not supported: {error})"
    oldest, newest = (".".join(map(str, each)) for each in (release.OLDEST, release.NEWEST))
    return f"{found} (supported: {oldest} to {newest})"


def devices() -> str:
    """Return the accelerators that torch sees, each with its memory."""
    try:
        import torch
    except ImportError as error:
        return f"unknown: {error}"
    if not torch.accelerator.is_available():
        return f"none; CPU with {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    kind = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count()
    if kind is None or kind.type != "cuda":
        return f"{count} x {kind}"
    known = [torch.cuda.get_device_properties(index) for index in range(count)]
    return f"{', '.join(f'{each.name} ({each.total_memory / 2**30:.0f} GiB)' for each in known)}; {cuda_version()}"


def cuda_version() -> str:
    import torch

    return f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"


def facts() -> dict[str, str]:
    """Return what to print, by name."""
    found = {package: installed(package) for package in PACKAGES}
    found |= {"Python": f"{platform.python_version()} ({sys.executable})", "platform": platform.platform()}
    found["devices"] = devices()
    return found | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def run(argv: list[str]) -> None:
    """Print the facts, one per line."""
    if argv in (["-h"], ["--help"]):
        print(f"usage: canon-trl env\n\n{__doc__}")
        return
    if argv:
        raise ValueError(f"env takes no arguments, but was given {argv}")
    for name, value in facts().items():
        print(f"- {name}: {value}")

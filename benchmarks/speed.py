"""Measure all numbers in docs/speed.md in one run; `python benchmarks/report.py` then writes them there.

    python benchmarks/speed.py                    # two CPU cores, a quarter of an hour
    python benchmarks/speed.py --preset gpu       # one GPU, under ten minutes, nothing to download
    python benchmarks/speed.py --preset quick     # checks that everything runs, a few minutes on a CPU
    python benchmarks/speed.py --only-across-ranks

Each part stops when its minutes are over and it has the fewest pairs that it needs, so a slower machine measures fewer
pairs instead of running longer. transformers samples the responses; `step_time.py --vllm` uses vLLM.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gathers
import peak_memory
import sampler
import selection
import step_parts
import step_time
import torch
from random_models import EMBEDDED, model_folder
from step_time import METHODS, Workload

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "trl", "transformers", "accelerate", "canon-trl")
IN_PARTS = ("canon entropy", "canon entropy, forward", "canon length", "kl_cov micro_batch")
# Methods that each do something the others do not, for workloads too slow for all methods.
DISTINCT = ("canon entropy", "canon entropy, forward", "canon length", "grpo", "clip_cov micro_batch")
DISTINCT += ("kl_cov micro_batch", "kl_cov batch", "dynamic_sampling")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One table of ratios."""

    workload: Workload  # its model is a name from `random_models.py`
    methods: tuple[str, ...] = tuple(METHODS)
    pairs: int
    minutes: float


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What to measure, in this order, and for how long."""

    timings: tuple[Timing, ...]
    memory: Workload
    memory_methods: tuple[str, ...] = tuple(METHODS)
    memory_repeats: int
    memory_at_once: int  # number of processes
    parts: tuple[Workload, ...]
    part_steps: int
    sampler_pairs: int
    sampler_minutes: float
    ranks: tuple[int, ...]
    selected_tokens: int = selection.TOKENS


def embedded(group: int, **options: Any) -> Workload:
    return Workload(model=EMBEDDED, responses=64, group=group, tokens=24, **options)


MIDDLE = Workload(model="13M", responses=8, group=4, tokens=16)
LARGE = Workload(model="200M", responses=32, group=16, tokens=32, bf16=True)
PRESETS = {
    "cpu": Preset(
        timings=(
            *(Timing(workload=embedded(group), pairs=15, minutes=1.7) for group in (4, 16, 64)),
            Timing(workload=MIDDLE, pairs=9, minutes=2.7),
            Timing(workload=replace(MIDDLE, responses=16, group=16, tokens=8), methods=DISTINCT, pairs=9, minutes=1.7),
        ),
        memory=MIDDLE,
        memory_repeats=2,
        memory_at_once=2,
        parts=(embedded(16), MIDDLE),
        part_steps=5,
        sampler_pairs=9,
        sampler_minutes=0.4,
        ranks=gathers.RANKS,
    ),
    "gpu": Preset(
        timings=(
            Timing(workload=LARGE, pairs=9, minutes=2.5),
            Timing(workload=replace(LARGE, responses=64, group=64), methods=DISTINCT, pairs=9, minutes=1.5),
        ),
        memory=LARGE,
        memory_methods=DISTINCT,
        memory_repeats=1,
        memory_at_once=1,
        parts=(LARGE,),
        part_steps=3,
        sampler_pairs=9,
        sampler_minutes=0.4,
        ranks=(),
    ),
}
TINY = Workload(model=EMBEDDED, responses=8, group=4, tokens=4)
PRESETS["quick"] = Preset(
    timings=(Timing(workload=TINY, pairs=3, minutes=0.1),),
    memory=TINY,
    memory_repeats=1,
    memory_at_once=2,
    parts=(TINY, replace(TINY, model="13M", responses=4)),
    part_steps=1,
    sampler_pairs=3,
    sampler_minutes=0.1,
    ranks=(1, 2),
    selected_tokens=2**16,
)


def on_disk(workload: Workload) -> Workload:
    return replace(workload, model=model_folder(workload.model))


def run(name: str, device: str, path: Path) -> None:
    """Measure everything in a preset, and write the numbers so far to the path after each part."""
    preset, started = PRESETS[name], time.perf_counter()
    found: dict[str, Any] = {"settings": settings(name, device), "step_time": [], "parts": []}

    def save() -> None:
        found["settings"]["minutes"] = (time.perf_counter() - started) / 60
        path.write_text(json.dumps(rounded(found), indent=1) + "\n")

    def place(workload: Workload) -> Workload:
        return replace(workload, cpu=device == "cpu", bf16=workload.bf16 and device != "cpu")

    for timing in preset.timings:
        workload, until = place(timing.workload), time.perf_counter() + 60 * timing.minutes
        print(f"step time: {described(workload)}", flush=True)
        results = step_time.measure(timing.methods, on_disk(workload), pairs=timing.pairs, until=until)
        found["step_time"].append({"workload": asdict(workload), "methods": results})
        save()
    for workload in map(place, preset.parts):
        print(f"parts of a step: {described(workload)}", flush=True)
        results = step_parts.measure(IN_PARTS, on_disk(workload), steps=preset.part_steps)
        found["parts"].append({"workload": asdict(workload), "methods": results})
        save()
    memory = place(preset.memory)
    print(f"peak memory: {described(memory)}", flush=True)
    processes = {"repeats": preset.memory_repeats, "at_once": preset.memory_at_once}
    results = peak_memory.measure(preset.memory_methods, on_disk(memory), **processes)
    found["memory"] = {"workload": asdict(memory), "methods": results}
    save()
    until = time.perf_counter() + 60 * preset.sampler_minutes
    found["sampler"] = sampler.measure(prompts=64, samples=8, pairs=preset.sampler_pairs, until=until, device=device)
    save()
    if preset.ranks:
        found |= across_ranks(preset)
        save()
    print(f"{found['settings']['minutes']:.1f} minutes; the numbers are in {path}")


def across_ranks(preset: Preset) -> dict[str, Any]:
    """Measure what ranks send each other, and how long one rank takes to choose tokens."""
    print("selection", flush=True)
    selected = selection.measure(preset.selected_tokens)
    print("gathers", flush=True)
    return {"selection": selected, "gathers": gathers.measure(preset.ranks)}


def settings(preset: str, device: str) -> dict[str, Any]:
    return {
        "preset": preset,
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def described(workload: Workload) -> str:
    sizes = f"{workload.responses} responses of {workload.tokens} tokens, groups of {workload.group}"
    return f"{workload.model} model, {sizes}{', bf16' * workload.bf16}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the preset's")
    parser.add_argument("--only-across-ranks", action="store_true", help="keep the other numbers of an existing file")
    parser.add_argument("--threads", type=int, default=1, help="more than one is noisy on a shared CPU")
    options = parser.parse_args()
    device = options.device or ("cuda" if options.preset == "gpu" else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error(f"preset {options.preset!r} needs a GPU, but PyTorch finds none; --device cpu runs it on the CPU")
    torch.set_num_threads(options.threads)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"speed_{options.preset}.json"
    if options.only_across_ranks:
        found = json.loads(path.read_text()) | across_ranks(PRESETS[options.preset])
        path.write_text(json.dumps(rounded(found), indent=1) + "\n")
    else:
        run(options.preset, device, path)


def rounded(value: Any) -> Any:
    """The value with its floats rounded to seven digits, more than a clock resolves."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    main()

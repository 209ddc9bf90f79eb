"""Compare the peak memory of a step of every method with GRPOTrainer's, each in a separate process.

    python benchmarks/peak_memory.py

On a CPU the peak is the largest resident set of the process, including the interpreter and its libraries. It is a
high-water mark that never falls, hence the separate processes. On a GPU it is the most that PyTorch has allocated
there. `speed.py` measures it for other models and sizes.
"""

import multiprocessing
import os
import resource
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from step_time import BASELINE, METHODS, Workload, make, step_seconds

STEPS = 2


def peak(method: str, updates: int, workload: Workload) -> float:
    """The peak of this process after some steps, in MiB."""
    torch.set_num_threads(1)
    trainer = make(method, workload, updates=updates)
    for _ in range(STEPS):
        step_seconds(trainer)
    if trainer.accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(methods: Sequence[str], workload: Workload, *, repeats: int, at_once: int) -> dict[str, dict[str, Any]]:
    """Medians over the repeats and their ratio, with every single peak; `at_once` processes run in parallel."""
    wanted = {method: METHODS[method].get("num_iterations", 1) for method in methods}
    sides = list(dict.fromkeys([(BASELINE, updates) for updates in wanted.values()] + list(wanted.items())))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["step_time"])  # imports the libraries once for all processes
    with ProcessPoolExecutor(at_once, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = {side: [pool.submit(peak, *side, workload) for _ in range(repeats)] for side in sides}
        peaks = {side: [job.result() for job in given] for side, given in jobs.items()}
    results = {}
    for method, updates in wanted.items():
        ours, theirs = peaks[method, updates], peaks[BASELINE, updates]
        middle, base = statistics.median(ours), statistics.median(theirs)
        results[method] = {"ratio": middle / base, "more_mib": middle - base, "ours": ours, "theirs": theirs}
        print(f"{method:22} / {BASELINE}: {middle / base:.3f} ({middle - base:+.0f} MiB of {base:.0f})", flush=True)
    return results


if __name__ == "__main__":
    measure(list(METHODS), Workload(), repeats=3, at_once=os.cpu_count() or 1)

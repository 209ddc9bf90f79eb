"""Measure what canon_trl sends between ranks in addition to TRL: bytes and seconds, on processes of this machine.

    python benchmarks/gathers.py --json gathers.json

The processes talk over gloo. For each number of processes there are two measurements. The first is a sweep of single
all-gathers and all-reduces of many sizes; the network's latency and bandwidth are fitted to the all-gathers of two
processes at every other size, and checked on the rest. The second is training steps of several methods, which note
every collective and the package that called it. All processes wait for each other before a collective is timed, so
that its time does not include the slowest rank's generation.
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import PartialState
from accelerate.utils import gather, reduce
from gather_model import Gather, Network, choice_rounds, fit, relative_error, rollout_bytes
from step_time import Workload, every_other_reward, make

SIZES = tuple(4**power for power in range(3, 12))  # bytes that each rank sends, 64 to 4 Mi
REPEATS = 30
RANKS, GROUPS, TOKENS = (1, 2, 4), (4, 16, 64), 16
METHODS = ("canon entropy", "clip_cov micro_batch", "kl_cov micro_batch", "kl_cov batch", "dynamic_sampling")
METRICS = {"canon entropy": 1}
OURS, TRL, OTHER = "canon_trl", "trl", "other"
REDUCED = "canon_trl, all-reduces"
NAMES = ("calls", "bytes", "seconds")
GATHERS, REDUCES = ("all_gather", "all_gather_into_tensor", "all_gather_object"), ("all_reduce",)
ROOT = Path(__file__).parents[1]


def half_of_the_prompts_teach(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """Rewards without spread for prompts that begin with an even digit: dynamic sampling has groups to replace."""
    rewards = every_other_reward(completions)
    return [reward if int(prompt[0]) % 2 else 0.0 for prompt, reward in zip(prompts, rewards, strict=True)]


class Ledger:
    """Notes each all-gather and all-reduce: its caller, whether it gathers, bytes of this rank, and seconds."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, bool, int, float]] = []

    def __enter__(self) -> "Ledger":
        noted = {name: self._noted(getattr(torch.distributed, name)) for name in (*GATHERS, *REDUCES)}
        self._patch = patch.multiple(torch.distributed, **noted)
        self._patch.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._patch.stop()

    def _noted(self, collective: Callable) -> Callable:
        gathers = collective.__name__ in GATHERS

        @wraps(collective)
        def call(*args: Any, **kwargs: Any) -> Any:
            sent = args[1] if gathers else args[0]  # a gather's first argument is where to put what it receives
            size = sent.nbytes if isinstance(sent, torch.Tensor) else len(pickle.dumps(sent))
            torch.distributed.barrier()
            start = time.perf_counter()
            result = collective(*args, **kwargs)
            self.entries.append((caller(), gathers, size, time.perf_counter() - start))
            return result

        return call


def caller() -> str:
    """The package that called: ours or TRL's, whichever is nearest on the stack."""
    frame = sys._getframe()
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in (OURS, TRL):
            return package
        frame = frame.f_back
    return OTHER


def sweep(state: PartialState, collective: Callable[[torch.Tensor], Any]) -> dict[int, float]:
    """Median seconds of a collective, by the bytes that each rank sends."""
    seconds = {}
    for size in SIZES:
        tensor = torch.zeros(size // 4)
        taken = []
        for _ in range(REPEATS):
            state.wait_for_everyone()
            start = time.perf_counter()
            collective(tensor)
            taken.append(time.perf_counter() - start)
        seconds[size] = statistics.median(taken)
    return seconds


def steps(method: str, group: int, count: int = 5) -> dict[str, Any]:
    """What each package sends per step, with one group of responses per rank: medians over the steps.

    Our all-reduces are also listed separately.
    """
    workload = Workload(responses=group, group=group, tokens=TOKENS, cpu=True)
    trainer = make(method, workload, reward=half_of_the_prompts_teach)
    taken: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for _ in range(count + 1):
        with Ledger() as ledger:
            trainer.train()
        for package in (OURS, TRL, OTHER):
            taken[package].append(summed([entry for entry in ledger.entries if entry[0] == package]))
        taken[REDUCED].append(summed([entry for entry in ledger.entries if entry[0] == OURS and not entry[1]]))
    medians = {
        package: dict(zip(NAMES, map(statistics.median, zip(*given[1:], strict=True)), strict=True))
        for package, given in taken.items()
    }
    return {"method": method, "group": group, "updates": trainer.num_iterations} | medians


def summed(entries: list[tuple[str, bool, int, float]]) -> tuple[int, int, float]:
    """The number of entries, their bytes and their seconds."""
    return len(entries), sum(size for *_, size, _ in entries), sum(seconds for *_, seconds in entries)


def work(path: Path) -> None:
    """Measure in every process; the first one writes its numbers."""
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    found: dict[str, Any] = {"ranks": state.num_processes, "sweep": {}, "reduce_sweep": {}}
    if state.num_processes > 1:
        found |= {"sweep": sweep(state, gather), "reduce_sweep": sweep(state, reduce)}
    found["steps"] = [steps(method, group) for method in METHODS for group in GROUPS]
    if state.is_main_process:
        path.write_text(json.dumps(found))
    if state.num_processes > 1:
        from toy import leave  # from the tests: gloo threads may abort the interpreter's teardown

        leave()


def measure(ranks: tuple[int, ...] = RANKS) -> dict[str, Any]:
    """All measurements, the fit and its check."""
    measured = []
    for count in ranks:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "found.json"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
            done = subprocess.run(
                [*command, __file__, "--work", str(path)], env=environment, capture_output=True, text=True
            )
            if not path.exists():
                raise RuntimeError(f"{count} processes ended with {done.returncode}: {done.stderr[-3000:]}")
            measured.append(json.loads(path.read_text()))
    return {"tokens": TOKENS, "measured": measured} | checked(measured)


def checked(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """The network fitted to two ranks at every other size, and its errors on measurements it has not seen."""
    points = [
        Gather(found["ranks"], int(size), seconds) for found in measured for size, seconds in found["sweep"].items()
    ]
    of_two = [point for point in points if point.ranks == 2]
    network = fit(of_two[::2])
    unseen = {"2 ranks, other sizes": of_two[1::2]}
    unseen |= {
        f"{ranks} ranks, every size": [point for point in points if point.ranks == ranks]
        for ranks in sorted({point.ranks for point in points} - {2})
    }
    in_steps = [
        Gather(found["ranks"], round(sent / calls), seconds / calls)
        for found in measured
        for step in found["steps"]
        for calls, sent, seconds in [
            [step[OURS][name] - step[REDUCED][name] for name in ("calls", "bytes", "seconds")]
        ]
        if found["ranks"] > 1 and calls  # a single rank sends nothing
    ]
    for ranks in sorted({point.ranks for point in in_steps}):
        unseen[f"{ranks} ranks, within training steps"] = [point for point in in_steps if point.ranks == ranks]
    errors = {f"all-gathers: {name}": relative_error(network.seconds, given) for name, given in unseen.items()}
    for found in measured:
        reduced = [Gather(found["ranks"], int(size), seconds) for size, seconds in found["reduce_sweep"].items()]
        if reduced:
            error = relative_error(network.ring_reduce_seconds, reduced)
            errors[f"all-reduces: {found['ranks']} ranks, every size"] = error
    return {
        "network": {"latency_s": network.latency, "bandwidth_bytes_per_s": network.bandwidth},
        "fit_error": relative_error(network.seconds, of_two[::2]),
        "errors": errors,
        "points": [[*point, network.seconds(point.ranks, point.sent)] for point in points],
    }


def expected_bytes(method: str, group: int, ranks: int, updates: int, tokens: int) -> int | None:
    """Bytes per rank and step according to the formulas; `None` if they depend on the rewards."""
    if method == "dynamic_sampling":
        return None
    name = method.partition(" ")[0]
    choices = updates * sum(choice_rounds(name, ranks * group * tokens)) if name in ("kl_cov", "clip_cov") else 0
    return rollout_bytes(group, METRICS.get(method, 0)) + choices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    found = measure(tuple(options.ranks))
    network = Network(*found["network"].values())
    print(
        f"latency {1e6 * network.latency:.0f} us, bandwidth {network.bandwidth / 1e9:.2f} GB/s; median relative error"
    )
    print(
        f"  of the fit {found['fit_error']:.0%}, of " + ", ".join(f"{k} {v:.0%}" for k, v in found["errors"].items())
    )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

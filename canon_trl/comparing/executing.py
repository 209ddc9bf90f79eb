"""Do the missing runs of a comparison, several processes at a time."""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from canon_trl.comparing.comparison import Comparison
from canon_trl.comparing.files import read_json, write_json, write_yaml
from canon_trl.comparing.runs import Run
from canon_trl.comparing.training_options import VALUE_OPTIONS


def unfinished(comparison: Comparison) -> list[Run]:
    """Return the runs that have no result yet.

    Raises:
        ValueError: a result was made with different settings.
    """
    missing = []
    for run in [*comparison.tuning_runs(), *comparison.runs()]:
        if (result := run.result()) is None:
            missing.append(run)
        elif changed := differences(result["settings"], comparison.settings_of(run)):
            place = "output_dir" if comparison.results_dir is None else "results_dir"
            raise ValueError(f"{run.file} was made with {changed}; delete it or name another {place}")
    return missing


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Name the settings in which a run differs from what is wanted, or return an empty text if they agree."""

    def flat(settings: dict[str, Any]) -> dict[str, Any]:
        parts = {name: part if isinstance(part, dict) else {"": part} for name, part in settings.items()}
        return {f"{name}.{key}".rstrip("."): value for name, part in parts.items() for key, value in part.items()}

    found, wanted = flat(found), flat(wanted)
    changed = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
    return ", ".join(f"{name}={found.get(name)!r}, not {wanted.get(name)!r}" for name in changed)


@contextmanager
def only_one_in(folder: Path) -> Iterator[int]:
    """Lock a folder; the process that works there inherits the lock.

    If this process is killed and that one survives, the next comparison waits for it to end.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def start(command: list[str], log: Path, threads: int, *, imports: Path, inherits: Sequence[int] = ()) -> bool:
    """Run a command with its output in a log file, and return whether it succeeded.

    `imports` is a folder of modules that the command can import.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(imports), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    with log.open("w") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, pass_fds=inherits)
    return done.returncode == 0


def sample_values(comparison: Comparison, task: str, threads: int) -> None:
    """Run stage 1 of A*-PO for a task, whose values all seeds share, and record the seconds that it takes."""
    folder, config = comparison.values_of(task), comparison.values_of(task) / "options.yaml"
    options = {"task": task} | comparison.options | comparison.tasks[task]
    options = {key: options[key] for key in VALUE_OPTIONS if key in options} | comparison.values
    options |= {"output_dir": str(folder)}
    with only_one_in(folder) as lock:
        if not (folder / "seconds.json").exists():
            shutil.rmtree(folder, ignore_errors=True)  # start over, so that the seconds cover all of the sampling
        elif yaml.safe_load(config.read_text()) == options:
            return
        folder.mkdir(exist_ok=True)
        write_yaml(config, options)  # the command rejects a folder with values made with other options
        command = [*comparison.launcher, "-m", "canon_trl", "values", "--config", str(config)]
        begin = time.perf_counter()
        if not start(command, folder / "log.txt", threads, imports=comparison.folder, inherits=[lock]):
            raise RuntimeError(f"sampling the values of {task} failed, see {folder / 'log.txt'}")
        write_json(folder / "seconds.json", time.perf_counter() - begin)


def execute(comparison: Comparison, runs: list[Run], threads: int) -> list[Run]:
    """Perform runs in a separate process, and return those that failed."""
    with ExitStack() as stack:
        locks = [stack.enter_context(only_one_in(run.folder)) for run in runs]
        runs = [run for run in runs if run.result() is None]
        if not runs:
            return []
        for run in runs:
            prepare(run.folder, comparison.settings_of(run))
        jobs = [{"folder": str(run.folder), "result": str(run.file)} for run in runs]
        plan = runs[0].folder / "jobs.json"
        write_json(plan, [job | {"keep_model": comparison.keep_models} for job in jobs])
        # --debug: the log gets tracebacks
        command = [*comparison.launcher, "-m", "canon_trl", "compare", str(plan), "--perform", "--debug"]
        succeeded = start(command, runs[0].folder / "log.txt", threads, imports=comparison.folder, inherits=locks)
        return [run for run in runs if run.result() is None or (len(runs) == 1 and not succeeded)]


def prepare(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a run, and remove what was made with others."""
    known = folder / "settings.json"
    changed = {key for key, value in (read_json(known) or {}).items() if value != settings.get(key)}
    trained = (folder / "curve.json").exists() and (folder / "model").exists()  # keep_models may have removed it
    if changed - {"evaluate"} or not trained:
        shutil.rmtree(folder, ignore_errors=True)  # training does not resume midway
    elif changed:
        shutil.rmtree(folder / "evaluation", ignore_errors=True)
    folder.mkdir(exist_ok=True)
    write_json(known, settings)


def execute_all(comparison: Comparison, missing: list[Run], jobs: int, threads: int) -> list[Run]:
    """Do the missing runs, several at a time and tuning runs first, and return those that failed."""
    for task in {run.task for run in missing if comparison.script_of(run.method) == "train_astar_po"}:
        sample_values(comparison, task, threads)
    total = len(comparison.tuning_runs()) + len(comparison.runs())
    print(f"{len(missing)} of {total} runs to do, {jobs} at a time", flush=True)
    failed: list[Run] = []
    count, begin = 0, time.perf_counter()
    for part in (comparison.tuning_runs, comparison.runs):
        todo = [run for run in part() if run.result() is None]
        if part == comparison.runs and comparison.learning_rates:
            todo = [run for run in todo if run.learning_rate is not None]
        size = comparison.runs_per_process
        chunks = [todo[place : place + size] for place in range(0, len(todo), size)]
        with ThreadPoolExecutor(jobs) as pool:
            started = {pool.submit(execute, comparison, chunk, threads): chunk for chunk in chunks}
            try:
                for done in as_completed(started):
                    failures = done.result()
                    failed += failures
                    count += len(started[done])
                    left = (time.perf_counter() - begin) / count * (len(missing) - count) / 60
                    for run in started[done]:
                        outcome = f"FAILED, see {run.folder / 'log.txt'}" if run in failures else "done"
                        print(f"{run.task} {run.method} seed {run.seed}: {outcome}; {left:.0f} min left", flush=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # on Ctrl-C start no further runs
                raise
    return failed


def collect(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the results so far, each with its task, method and seed, and the seconds spent before its run."""
    results = []
    for run in comparison.runs():
        if (result := run.result()) is not None:
            values = comparison.values_of(run.task) / "seconds.json"
            before = read_json(values) if comparison.script_of(run.method) == "train_astar_po" else 0.0
            results.append(
                result | {"task": run.task, "method": run.method, "seed": run.seed, "seconds_before": before}
            )
    return results

"""Value estimation, evaluation and comparisons finish with the same results after a kill or a full disk."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from datasets import Dataset
from pyarrow import parquet
from test_comparisons import harness, write_comparison
from toy import assert_same_but_for_rounding

from canon_trl.cli import compare, evaluate, values
from canon_trl.sampling.chunks import ChunkLog, atomic_write, collect_records, missing_chunks, sample_chunks
from canon_trl.sampling.samplers import Response

pytestmark = pytest.mark.timeout(900)  # one test does a whole run
ROOT = Path(__file__).parents[2]
MAINS = {"values": values.main, "evaluate": evaluate.main}
FILES = {
    "values": ("train.parquet", "test.parquet"),
    "evaluate": ("arithmetic/records.parquet", "summary.json", "summary.md"),
}
OPTIONS = {"task": "arithmetic", "num_samples": 2, "chunk_prompts": 2, "max_completion_length": 30}
OPTIONS |= {"task_eval_prompts": 24}


def flags(script: str, folder: Path) -> list[str]:
    own = {"task_train_prompts": 40} if script == "values" else {}
    options = OPTIONS | own | {"output_dir": str(folder)}
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def progress(script: str, folder: Path) -> Path:
    parts = {"values": (".progress", "train"), "evaluate": ("arithmetic", ".progress")}[script]
    return folder.joinpath(*parts)


def contents(script: str, folder: Path) -> dict[str, Any]:
    """Return tables as rows, JSON as objects, and text without its numbers, which are rounded."""
    read = {
        ".parquet": lambda path: parquet.read_table(path).to_pylist(),
        ".json": lambda path: json.loads(path.read_text()),
        ".md": lambda path: re.sub(r"\d+\.\d+", "#", path.read_text()),
    }
    return {name: read[Path(name).suffix](folder / name) for name in FILES[script]}


def log_entries(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", params=list(MAINS))
def whole(request, tmp_path_factory):
    """The name of a script, the folder of an undisturbed run, and the contents of its files."""
    script = request.param
    folder = tmp_path_factory.mktemp(script) / "whole"
    MAINS[script](flags(script, folder))
    return script, folder, contents(script, folder)


def kill_all(process: psutil.Popen) -> None:
    for each in [*process.children(recursive=True), process]:
        each.kill()
    process.wait()


def wait_until(condition, process, *, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process has ended too early"
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.01)


class TestTruncatedFiles:
    """Files that a kill has left half written."""

    DATA = Dataset.from_dict({"prompt": [str(index) for index in range(5)]})

    def sample(self, folder):
        log = ChunkLog(folder, {})
        sampled = missing_chunks(self.DATA, log, chunk_size=2)
        sample_chunks(
            self.DATA,
            lambda prompts, seed: [[Response([int(prompt), seed % 97])] for prompt in prompts],
            lambda rows, responses: [[given[0].ids, "ß\n"] for given in responses],
            log,
            chunks=sampled,
            chunk_size=2,
            seed=3,
        )
        return sampled, collect_records(self.DATA, log), (folder / "chunks-00000.jsonl").read_bytes()

    def test_a_log_truncated_at_any_byte(self, tmp_path):
        _, records, written = self.sample(tmp_path / "whole")
        ends = [index + 1 for index, byte in enumerate(written) if byte == ord("\n")]
        assert len(ends) == 3
        for length in range(len(written) + 1):
            shutil.copytree(tmp_path / "whole", tmp_path / "torn")
            os.truncate(tmp_path / "torn" / "chunks-00000.jsonl", length)
            kept = sum(end <= length for end in ends)
            assert self.sample(tmp_path / "torn") == (list(range(kept, 3)), records, written)
            shutil.rmtree(tmp_path / "torn")

    def test_the_truncated_log_of_a_rank_that_no_longer_exists(self, tmp_path):
        """One rank continues a run of two ranks and leaves the file of the other rank unchanged."""
        _, records, written = self.sample(tmp_path / "whole")
        (tmp_path / "torn").mkdir()
        first, second, _ = written.splitlines(keepends=True)
        (tmp_path / "torn" / "chunks-00001.jsonl").write_bytes(first + second[:-5])
        assert self.sample(tmp_path / "torn")[:2] == ([1, 2], records)

    def test_half_written_settings(self, tmp_path):
        (tmp_path / ".settings.json.partial").write_text('{"tempe')
        ChunkLog(tmp_path, {"temperature": 0.5})
        with pytest.raises(ValueError, match=r"was started with temperature=0.5, not 1.0"):
            ChunkLog(tmp_path, {"temperature": 1.0})
        assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
    def test_half_written_results(self, whole, tmp_path, share):
        """Results, temporary files and the log are all truncated."""
        script, folder, wanted = whole
        torn = tmp_path / "torn"
        shutil.copytree(folder, torn)
        for name in FILES[script]:
            os.truncate(torn / name, int(share * (torn / name).stat().st_size))
            (torn / name).with_name(f".{Path(name).name}.partial").write_bytes((folder / name).read_bytes()[:7])
        log = progress(script, torn) / "chunks-00000.jsonl"
        os.truncate(log, int(share * log.stat().st_size))
        MAINS[script](flags(script, torn))
        assert_same_but_for_rounding(contents(script, torn), wanted)
        assert not list(torn.rglob("*.partial"))


FULL_DISK = """
import resource, sys
from canon_trl.cli import {script}
for limit in {limits}:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        {script}.main(sys.argv[1:])
    except OSError as error:
        print("stopped:", error)
"""


def test_a_full_disk_is_reported_with_the_file_and_keeps_finished_chunks(whole, tmp_path):
    """First there is room for some chunks, then for all chunks but not for the result, then for everything."""
    script, undisturbed, wanted = whole
    folder = tmp_path / "full"
    log, result = progress(script, folder) / "chunks-00000.jsonl", folder / FILES[script][0]
    files = (log.parent / "settings.json", log, result)
    sizes = [(undisturbed / file.relative_to(folder)).stat().st_size for file in files]
    assert sizes == sorted(sizes)
    limits = [(sizes[0] + sizes[1]) // 2, (sizes[1] + sizes[2]) // 2]
    command = [sys.executable, "-c", FULL_DISK.format(script=script, limits=limits), *flags(script, folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    stopped = [line for line in done.stdout.splitlines() if line.startswith("stopped: ")]
    wanted_lines = [f"stopped: [Errno 27] File too large: '{file}'" for file in (log, result)]
    assert stopped == wanted_lines, done.stderr[-4000:]
    assert not any((folder / name).exists() for name in FILES[script])
    assert_same_but_for_rounding(log_entries(log), log_entries(undisturbed / log.relative_to(folder)))
    MAINS[script](flags(script, folder))
    assert_same_but_for_rounding(contents(script, folder), wanted)


def test_a_file_is_written_completely_or_not_at_all(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "file") as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with atomic_write(tmp_path / "file") as partial:
        partial.write_text("new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_killing_one_of_two_ranks_stops_both(whole, tmp_path):
    script, _, wanted = whole
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
    command += [str(ROOT / "tests" / "configs" / "cpu_two_processes.yaml"), "-m", "canon_trl", script]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = psutil.Popen([*command, *flags(script, folder)], env=environment, stderr=subprocess.DEVNULL)

    def chunks():
        return [path.read_bytes().count(b"\n") for path in progress(script, folder).glob("chunks-*")]

    wait_until(lambda: len(chunks()) == 2 and min(chunks()) > 0, process)
    ranks = process.children(recursive=True)
    (second,) = [rank for rank in ranks if rank.environ().get("RANK") == "1" and not rank.children()]
    second.kill()
    assert process.wait(timeout=120) != 0
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    assert not any((folder / name).exists() for name in FILES[script])
    MAINS[script](flags(script, folder))
    assert_same_but_for_rounding(contents(script, folder), wanted)


@pytest.mark.parametrize(
    ("script", "file", "owner"),
    [
        ("values", "arithmetic/.progress/settings.json", "an evaluation"),
        ("values", "summary.json", "an evaluation"),
        ("values", "config.json", "a training run"),
        ("evaluate", ".progress/train/settings.json", "an estimation of values"),
        ("evaluate", "checkpoint-3/trainer_state.json", "a training run"),
    ],
)
def test_the_folder_of_another_script_is_rejected(script, file, owner, tmp_path):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=rf"output_dir='.*' contains .*, so it belongs to {owner}; name another"):
        MAINS[script](flags(script, tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / file]


class TestComparison:
    """A comparison whose only method is A*-PO, with its two stages and the evaluation."""

    METHOD = {"script": "train_astar_po", "beta1": 0.5, "per_device_train_batch_size": 8}
    RUN = Path("runs/runs/arithmetic/astar/1")

    def write(self, folder):
        folder.mkdir()
        changes = {"methods": {"astar": self.METHOD}, "baseline": "astar", "seeds": [1]}
        changes["values"] = {"num_samples": 2, "beta1": 0.5, "chunk_prompts": 1}
        changes["evaluate"] = {"num_samples": 2, "pass_at_k": [1, 2], "chunk_prompts": 1}
        path = write_comparison(folder, **changes)
        content = yaml.safe_load(path.read_text())
        content["options"] |= {"max_steps": 8, "task_eval_prompts": 16}
        path.write_text(yaml.safe_dump(content))
        return path

    def numbers(self, folder):
        """Return the results without times and paths."""
        found = json.loads((folder / self.RUN / "result.json").read_text())
        curve = [{key: value for key, value in point.items() if key != "seconds"} for point in found["curve"]]
        evaluation = {key: value for key, value in found["evaluation"].items() if key != "settings"}
        return curve, evaluation, json.loads((folder / "runs/report/report.json").read_text())

    def finish(self, path):
        process = harness(path, "--jobs", "1")
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output

    def test_killed_in_every_stage_it_ends_with_the_same_numbers(self, tmp_path):
        self.finish(self.write(tmp_path / "whole"))
        folder = tmp_path / "killed"
        path, run, values = self.write(folder), folder / self.RUN, folder / "runs/values/arithmetic"
        stages = {
            "values": lambda: any(file.stat().st_size for file in values.glob(".progress/train/chunks-*")),
            "training": lambda: (run / "log.txt").exists() and "'loss'" in (run / "log.txt").read_text(),
            "evaluation": lambda: any(file.stat().st_size for file in run.glob("evaluation/*/.progress/chunks-*")),
        }
        ends = {"values": values / "seconds.json", "training": run / "curve.json", "evaluation": run / "result.json"}
        for stage, under_way in stages.items():
            process = psutil.Popen(harness_command(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_until(under_way, process)
            kill_all(process)
            assert not ends[stage].exists(), f"{stage} has ended before the kill"
        trained_at = (run / "curve.json").stat().st_mtime_ns
        self.finish(path)
        assert (run / "curve.json").stat().st_mtime_ns == trained_at, "it has trained again"
        assert_same_but_for_rounding(self.numbers(folder), self.numbers(tmp_path / "whole"))
        # killed while the report is written
        report = {file: file.read_bytes() for file in (folder / "runs/report").iterdir()}
        for file, content in report.items():
            file.write_bytes(content[: len(content) // 2])
        compare.main([str(path), "--jobs", "0"])
        assert {file: file.read_bytes() for file in report} == report


def harness_command(path):
    return [sys.executable, "-m", "canon_trl", "compare", str(path), "--jobs", "1"]

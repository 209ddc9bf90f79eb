"""Sampling many prompts on several ranks, whatever happens in between.

Prompts are sampled in chunks. What a chunk gives is a function of the chunk and the seed, whichever rank samples it
and whatever happened before; and it is on disk as soon as it is known. So a killed run resumes with the
chunks that are missing, on as many ranks as there are then, and ends with the same responses. Numbers that are
computed from logits, such as entropies, agree up to rounding: processes, threads and processors may add in different
orders.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset

from canon_trl.sampling.samplers import Response, Sampler

# (rows of a chunk, responses to each) -> what is kept of them, one record a prompt
Recorder = Callable[[list[dict[str, Any]], Sequence[Sequence[Response]]], list[Any]]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A write that fails says which file it was: a disk that is full does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file that is to be there at once or not at all, so that no half of it passes for the whole.

    The place is hidden, so that `datasets` does not take what a killed run left there for data.

    Raises:
        OSError: it could not be written; what was there before still is.
    """
    partial = path.with_name(f".{path.name}.partial")
    with naming(path):
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


class ChunkLog:
    """What is known of chunks of prompts, a line each, appended by every rank to a file of its own.

    Args:
        folder: where the files are; made if it is missing.
        settings: what the numbers depend on; kept beside them.
        rank: of this process.

    Raises:
        ValueError: the folder holds numbers that were made with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, rank: int = 0) -> None:
        self._folder = folder
        self._file = folder / f"chunks-{rank:05d}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        settings_file = folder / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if settings_file.exists():
            found = json.loads(settings_file.read_text())
            if changed := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
                differences = ", ".join(f"{name}={found.get(name)!r}, not {wanted.get(name)!r}" for name in changed)
                raise ValueError(f"{folder} was begun with {differences}; name another output_dir or delete it")
        elif rank == 0:
            with whole_file(settings_file) as file:
                file.write_text(json.dumps(wanted, indent=1))
        if self._file.exists():  # a kill may have torn the last line
            whole = self._file.read_bytes()
            os.truncate(self._file, whole.rfind(b"\n") + 1)

    def append(self, chunk: int, records: list[Any]) -> None:
        """Note the records of a chunk for good, one a prompt.

        Raises:
            OSError: they could not be written; the chunks before them are kept.
        """
        with naming(self._file), self._file.open("a") as file:
            file.write(json.dumps({"chunk": chunk, "records": records}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[int, list[Any]]:
        """The records of all ranks by chunk."""
        known = {}
        for path in sorted(self._folder.glob("chunks-*.jsonl")):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    entry = json.loads(line)
                    known[entry["chunk"]] = entry["records"]
        return known


def missing_chunks(dataset: Dataset, log: ChunkLog, *, chunk_size: int) -> list[int]:
    """The chunks that are not known yet; all ranks must have asked before any of them samples."""
    known = log.read()
    return [chunk for chunk in range(num_chunks(dataset, chunk_size)) if chunk not in known]


def num_chunks(dataset: Dataset, chunk_size: int) -> int:
    return -(-len(dataset) // chunk_size)


def chunk_records(
    dataset: Dataset, sample: Sampler, record: Recorder, chunk: int, *, chunk_size: int, seed: int
) -> list[Any]:
    """Sample a chunk and record it: a function of the chunk and the seed alone.

    Args:
        dataset: with a column `prompt`.
        sample: see `Sampler`.
        record: `(rows, responses) -> records`, one a prompt; for the log, fit for JSON.
        chunk: which one.
        chunk_size: prompts that are sampled at a time.
        seed: of the sampling.
    """
    rows = list(dataset.select(range(chunk * chunk_size, min((chunk + 1) * chunk_size, len(dataset)))))
    return record(rows, sample([row["prompt"] for row in rows], (seed * 1_000_003 + chunk) % 2**63))


def sample_chunks(
    dataset: Dataset,
    sample: Sampler,
    record: Recorder,
    log: ChunkLog,
    *,
    chunks: Iterable[int],
    chunk_size: int,
    seed: int,
) -> None:
    """Sample chunks, this rank's share of the missing ones, into the log; see [`chunk_records`]."""
    for chunk in chunks:
        log.append(chunk, chunk_records(dataset, sample, record, chunk, chunk_size=chunk_size, seed=seed))


def collect_records(dataset: Dataset, log: ChunkLog) -> list[Any]:
    """The records of all prompts, in order.

    Raises:
        ValueError: the log lacks prompts.
    """
    known = log.read()
    records = [record for chunk in sorted(known) for record in known[chunk]]
    if len(records) != len(dataset) or sorted(known) != list(range(len(known))):
        raise ValueError(f"{len(records)} of {len(dataset)} prompts have been sampled; run it to its end")
    return records

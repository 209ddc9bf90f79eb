"""Sample many prompts in chunks on several ranks, and resume after a kill.

The records of a chunk depend only on the chunk and the seed, not on the rank or on what ran before, and they are
written to disk at once. So a killed run resumes with the missing chunks, on any number of ranks, and ends with the
same responses. Numbers computed from logits, such as entropies, agree up to rounding, since processes, threads and
processors may add in different orders.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset

from canon_trl.sampling.samplers import Response, Sampler

# (rows of a chunk, responses to each row) -> one record per prompt
Recorder = Callable[[list[dict[str, Any]], Sequence[Sequence[Response]]], list[Any]]


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Add the path to an `OSError` from writing, since the error of a full disk has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and move it to `path` at the end, so that `path` is never half written.

    The temporary file is hidden, so that `datasets` does not read one that a killed run has left.

    Raises:
        OSError: the file could not be written; the previous one is unchanged.
    """
    partial = path.with_name(f".{path.name}.partial")
    with named_in_errors(path):
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


class ChunkLog:
    """The records of chunks of prompts on disk. Every rank appends to a separate file, one line per chunk.

    Args:
        folder: folder for the files; created if it is missing.
        settings: the settings that the records depend on; stored in the same folder.
        rank: rank of this process.
        field: the option that names the folder, for errors.

    Raises:
        ValueError: the records in the folder were made with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, rank: int = 0, field: str = "output_dir") -> None:
        self._folder = folder
        self._file = folder / f"chunks-{rank:05d}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        settings_file = folder / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if settings_file.exists():
            found = json.loads(settings_file.read_text())
            if changed := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
                differences = ", ".join(f"{name}={found.get(name)!r}, not {wanted.get(name)!r}" for name in changed)
                raise ValueError(f"{folder} was started with {differences}; choose another {field} or delete it")
        elif rank == 0:
            with atomic_write(settings_file) as file:
                file.write_text(json.dumps(wanted, indent=1))
        if self._file.exists():  # a kill may have torn the last line
            whole = self._file.read_bytes()
            os.truncate(self._file, whole.rfind(b"\n") + 1)

    def append(self, chunk: int, records: list[Any]) -> None:
        """Write the records of a chunk, one per prompt, and flush them to disk.

        Raises:
            OSError: the records could not be written; earlier chunks are kept.
        """
        with named_in_errors(self._file), self._file.open("a") as file:
            file.write(json.dumps({"chunk": chunk, "records": records}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[int, list[Any]]:
        """Return the records of all ranks by chunk."""
        known = {}
        for path in sorted(self._folder.glob("chunks-*.jsonl")):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    entry = json.loads(line)
                    known[entry["chunk"]] = entry["records"]
        return known


def missing_chunks(dataset: Dataset, log: ChunkLog, *, chunk_size: int) -> list[int]:
    """Return the chunks that have no records yet. Every rank must call this before any rank samples."""
    known = log.read()
    return [chunk for chunk in range(num_chunks(dataset, chunk_size)) if chunk not in known]


def num_chunks(dataset: Dataset, chunk_size: int) -> int:
    return -(-len(dataset) // chunk_size)


def chunk_records(
    dataset: Dataset, sample: Sampler, record: Recorder, chunk: int, *, chunk_size: int, seed: int
) -> list[Any]:
    """Sample a chunk and return its records, which depend only on the chunk and the seed.

    Args:
        dataset: has a column `prompt`.
        sample: see `Sampler`.
        record: `(rows, responses) -> records`, one per prompt; a log needs records that JSON can store.
        chunk: index of the chunk.
        chunk_size: prompts per chunk.
        seed: seed of the sampling.
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
    """Sample this rank's share of the missing chunks into the log; see [`chunk_records`]."""
    for chunk in chunks:
        log.append(chunk, chunk_records(dataset, sample, record, chunk, chunk_size=chunk_size, seed=seed))


def collect_records(dataset: Dataset, log: ChunkLog) -> list[Any]:
    """Return the records of all prompts, in order.

    Raises:
        ValueError: some prompts have no record.
    """
    known = log.read()
    records = [record for chunk in sorted(known) for record in known[chunk]]
    if len(records) != len(dataset) or sorted(known) != list(range(len(known))):
        raise ValueError(f"{len(records)} of {len(dataset)} prompts have been sampled; let the sampling finish first")
    return records

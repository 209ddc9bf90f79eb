"""Uploads to the Hub that fail and say how they are made up for."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def upload_command(
    repository: str,
    folder: Path | str,
    *,
    to: str = ".",
    dataset: bool = False,
    exclude: Sequence[str] = (),
    revision: str | None = None,
    private: bool = False,
) -> str:
    """The line for a shell that uploads a folder or a file; it makes the repository if there is none.

    Args:
        repository: its name on the Hub, such as `me/model`.
        folder: what is uploaded, also a single file.
        to: its path in the repository.
        dataset: whether the repository is one of a dataset; else it is a model's.
        exclude: patterns of files that stay here.
        revision: the branch; default the main one.
        private: whether a repository that is made is private.
    """
    command = ["hf", "upload", repository, str(folder), to]
    command += ["--repo-type", "dataset"] if dataset else []
    command += [part for pattern in exclude for part in ("--exclude", pattern)]
    command += ["--revision", revision] if revision else []
    return shlex.join([*command, "--private"] if private else command)


@contextmanager
def explained_failure(folder: Path | str, command: str) -> Iterator[None]:
    """Add to the error of a failed upload that nothing was lost, and the command that repeats it.

    The note stands at the end of the traceback.
    """
    try:
        yield
    except Exception as error:
        error.add_note(
            f"The upload failed. Everything that was to be uploaded is in {folder}; once the cause is gone, this "
            f"uploads it:\n    {command}"
        )
        raise

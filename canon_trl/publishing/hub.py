"""Uploads to the Hub: the shell command for one, and an error note for a failed one."""

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
    """Return the shell command that uploads a folder or a file and creates the repository if needed.

    Args:
        repository: name on the Hub, such as `me/model`.
        folder: the folder or file to upload.
        to: path in the repository.
        dataset: whether it is a dataset repository; otherwise a model repository.
        exclude: patterns of files not to upload.
        revision: branch; default the main branch.
        private: whether a newly created repository is private.
    """
    command = ["hf", "upload", repository, str(folder), to]
    command += ["--repo-type", "dataset"] if dataset else []
    command += [part for pattern in exclude for part in ("--exclude", pattern)]
    command += ["--revision", revision] if revision else []
    return shlex.join([*command, "--private"] if private else command)


@contextmanager
def explained_failure(folder: Path | str, command: str) -> Iterator[None]:
    """Add a note to the error of a failed upload: where the files are, and the command that repeats the upload."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"The upload failed. All files are in {folder}; after fixing the cause, upload them with:\n    {command}"
        )
        raise

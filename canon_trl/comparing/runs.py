"""A run of a comparison, and the file of its result."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canon_trl.comparing.files import read_json


def folder_of(method: str) -> str:
    return re.sub(r"[^\w.]+", "_", method)


@dataclass(frozen=True)
class Run:
    """A method on a task with a seed."""

    task: str
    method: str
    seed: int
    folder: Path
    file: Path  # of the result
    learning_rate: float | None = None  # if it is tuned

    def result(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = read_json(self.file)
        return found

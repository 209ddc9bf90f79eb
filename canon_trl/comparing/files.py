"""The YAML and JSON files of runs."""

import json
from pathlib import Path
from typing import Any

import yaml

from canon_trl.sampling.chunks import atomic_write


def write_yaml(path: Path, options: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(options))
    return path


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    with atomic_write(path) as file:
        file.write_text(json.dumps(content, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    """Return the content, or `None` if the file does not exist."""
    return json.loads(path.read_text()) if path.exists() else None

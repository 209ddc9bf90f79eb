"""Starting processes of their own, of which each is a rank."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def with_tests() -> str:
    """The path on which processes of their own find modules."""
    return os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))


def launch(config: str, script: str, folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(TESTS / "configs" / config)]
    command += ["--main_process_port", "0", str(TESTS / "distributed" / script), str(folder), *arguments]
    environment = os.environ | {"PYTHONPATH": with_tests()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]

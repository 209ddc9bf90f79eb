"""Launch test scripts on several ranks."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def with_tests() -> str:
    """Return a PYTHONPATH with which subprocesses find the modules of the tests."""
    return os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))


def launch(config: str, script: str, folder: Path, *arguments: str) -> str:
    """Run a script of tests/distributed and return its output; fail if the script fails or hangs."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(TESTS / "configs" / config)]
    command += ["--main_process_port", "0", str(TESTS / "distributed" / script), str(folder), *arguments]
    environment = os.environ | {"PYTHONPATH": with_tests()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr

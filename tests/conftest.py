import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
# Notebooks and scripts inherit this. The models are too small to gain from more threads, and test processes share the
# cores. The tests also pass with other numbers of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

settings.register_profile("exact", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("exact")
# A shell starts background jobs with Ctrl-C ignored, which all their processes inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in tests/runs as slow, except the smoke tests; `make test` skips slow tests.

    An address in the name of a test differs between processes, which then collect different tests.
    """
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} needs a name in `ids`")
        if item.path.parent.name == "runs" and item.get_closest_marker("smoke") is None:
            item.add_marker("slow")

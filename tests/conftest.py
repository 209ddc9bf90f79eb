import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
# Of notebooks and scripts as well: the models are too small to gain from more, and test processes share the cores. The
# tests pass with another number, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

settings.register_profile("exact", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("exact")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` leaves out what is slow: in tests/runs everything but the smoke tests."""
    for item in items:
        if item.path.parent.name == "runs" and item.get_closest_marker("smoke") is None:
            item.add_marker("slow")

"""Fixtures of the tests on the real vLLM engine, which need the environment that `install.sh` builds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cpu_engine import vllm_on_cpu
from smollm2 import save_smollm2


@pytest.fixture(scope="session", autouse=True)
def engine() -> Iterator[None]:
    pytest.importorskip("vllm", reason="needs the environment that install.sh builds")
    with vllm_on_cpu():
        yield


@pytest.fixture(scope="session")
def smollm2(pytestconfig: pytest.Config) -> Path:
    """Return the folder of SmolLM2-135M-Instruct, converted once and kept in pytest's cache until `--cache-clear`."""
    return save_smollm2(pytestconfig.cache.mkdir("smollm2") / "checkpoint")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set a timeout that allows for the start of the engine in the first test."""
    for item in items:
        item.add_marker(pytest.mark.timeout(900))

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

settings.register_profile("exact", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("exact")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The models are too small to gain from more, and several test processes share the cores."""
    torch.set_num_threads(1)

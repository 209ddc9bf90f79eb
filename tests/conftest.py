import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
# Of notebooks and scripts as well: the models are too small to gain from more, and test processes share the cores. The
# tests pass with another number, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

settings.register_profile("exact", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("exact")

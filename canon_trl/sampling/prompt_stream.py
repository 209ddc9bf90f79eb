"""Fresh prompts for dynamic sampling, and where among them a run is."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from datasets.iterable_dataset import BufferShuffledExamplesIterable

# Rows of a stream that are shuffled among themselves. A run that goes on reads at most so many again.
BLOCK = 1000


class PromptStream:
    """Fresh prompts: one pass over the dataset after another, each in an order of its own.

    The order is a function of the seed and the pass. Of a dataset it is a permutation. A stream's shards come in
    another order in every pass, and their rows are shuffled in blocks of 1,000: so a place in a stream is a number
    of rows in a block, and where the stream was when the block began, which `datasets` goes back to without reading
    the shards before it. A stream that has itself a shuffle buffer cannot be gone back to; of one its pass is read
    again.

    Args:
        dataset: rows with a prompt.
        seed: of the orders.
        shuffle: whether to shuffle at all.
    """

    def __init__(self, dataset: Dataset | IterableDataset, *, seed: int, shuffle: bool = True) -> None:
        # Who reads a stream moves its state, so that this one must not be anybody else's.
        self._dataset: Dataset | IterableDataset = (
            deepcopy(dataset) if isinstance(dataset, IterableDataset) else dataset
        )
        self._seed = seed
        self._shuffle = shuffle
        self.restart()

    def restart(self) -> None:
        """Back to the first prompt."""
        self.load_state_dict({"drawn": 0, "passes": 0, "blocks": 0, "rows": 0, "stream": None})

    @property
    def drawn(self) -> int:
        """Prompts drawn so far. Setting it goes there by the count alone: a stream is read from the start."""
        return self._drawn

    @drawn.setter
    def drawn(self, count: int) -> None:
        self.restart()
        self.take(count)

    def state_dict(self) -> dict[str, Any]:
        """Where to go on from: for `load_state_dict`, in Python's own types."""
        return {
            "drawn": self._drawn,
            "passes": self._passes,  # of a stream, as what follows
            "blocks": self._blocks,  # before the one begun, in this pass
            "rows": self._rows,  # drawn of the block begun
            "stream": self._stream,  # when the block began; None at the beginning of a pass
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._drawn: int = state["drawn"]
        self._passes, self._blocks, self._rows = state["passes"], state["blocks"], state["rows"]
        self._stream: dict[str, Any] | None = state["stream"]
        self._coming = self._of_stream() if isinstance(self._dataset, IterableDataset) else self._of_dataset()

    def take(self, count: int) -> list[dict[str, Any]]:
        """The next `count` rows."""
        rows = [next(self._coming) for _ in range(count)]
        self._drawn += count
        return rows

    def _of_dataset(self) -> Iterator[dict[str, Any]]:
        passes, position = divmod(self._drawn, len(self._dataset))
        while True:
            for index in self._order(len(self._dataset), passes)[position:]:
                yield self._dataset[index]
            passes, position = passes + 1, 0

    def _of_stream(self) -> Iterator[dict[str, Any]]:
        goes_back = not refills_a_buffer(self._dataset)
        while True:
            # datasets shuffles shards, and what a shuffle buffer draws, by the epoch, if it is not 0.
            self._dataset.set_epoch(self._mixed(self._passes) % (2**31 - 1) + 1 if self._shuffle else 0)
            self._dataset.load_state_dict(self._stream)
            rows = iter(self._dataset)
            if self._stream is None:
                for _ in islice(rows, self._blocks * BLOCK):
                    pass
            while block := list(islice(rows, BLOCK)):
                following = self._dataset.state_dict() if goes_back else None
                for index in self._order(len(block), self._passes, self._blocks)[self._rows :]:
                    self._rows += 1
                    if self._rows == len(block):
                        self._blocks, self._rows, self._stream = self._blocks + 1, 0, following
                    yield block[index]
            if not self._blocks:
                raise ValueError("train_dataset is an empty stream: there is no fresh prompt to sample")
            self._passes, self._blocks, self._stream = self._passes + 1, 0, None

    def _mixed(self, passes: int, blocks: int = 0) -> int:
        """A seed of its own for every pass and block, and unlike that of the sampler with the same seed."""
        return (self._seed * 1_000_003 + passes + 1 + blocks * 7_368_787) % 2**63

    def _order(self, size: int, passes: int, blocks: int = 0) -> list[int]:
        if not self._shuffle:
            return list(range(size))
        return torch.randperm(size, generator=torch.Generator().manual_seed(self._mixed(passes, blocks))).tolist()


def refills_a_buffer(dataset: IterableDataset) -> bool:
    """Whether a shuffle buffer is part of the stream: datasets would fill it anew, with later rows."""
    parts = [dataset._ex_iterable]
    while parts:
        part = parts.pop()
        if isinstance(part, BufferShuffledExamplesIterable):
            return True
        parts += [part.ex_iterable] if hasattr(part, "ex_iterable") else getattr(part, "ex_iterables", [])
    return False

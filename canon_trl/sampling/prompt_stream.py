"""Fresh prompts for dynamic sampling, and the place among them that a run has reached."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from datasets.iterable_dataset import BufferShuffledExamplesIterable

# Rows of a stream that are shuffled among themselves. A resumed run reads at most so many again.
BLOCK = 1000


@dataclass
class Place:
    """Where among the prompts the next one is, in Python's own types."""

    drawn: int = 0
    passes: int = 0  # of a stream, like what follows
    blocks: int = 0  # whole ones drawn in this pass
    rows: int = 0  # drawn of the current block
    stream: dict[str, Any] | None = None  # the stream's state when the block began; None at the beginning of a pass


class PromptStream:
    """Fresh prompts: one pass over the dataset after another, each in an order of its own.

    The order is a function of the seed and the pass. For a dataset it is a permutation. A stream's shards come in
    another order in every pass, and their rows are shuffled in blocks of 1,000; so a place in a stream is a number of
    rows in a block and the state of the stream when the block began, to which `datasets` returns without reading the
    shards before it. A stream that has a shuffle buffer itself cannot be returned to; its pass is read again.

    Args:
        dataset: rows with a prompt.
        seed: of the orders.
        shuffle: whether to shuffle at all.
    """

    def __init__(self, dataset: Dataset | IterableDataset, *, seed: int, shuffle: bool = True) -> None:
        # Whoever reads a stream moves its state, so this one must not be shared.
        self._dataset: Dataset | IterableDataset = (
            deepcopy(dataset) if isinstance(dataset, IterableDataset) else dataset
        )
        self._orders = Orders(seed, shuffle)
        self.restart()

    def restart(self) -> None:
        """Return to the first prompt."""
        self.load_state_dict(asdict(Place()))

    @property
    def drawn(self) -> int:
        """Prompts drawn so far."""
        return self._place.drawn

    def state_dict(self) -> dict[str, Any]:
        """The place to resume from, for `load_state_dict`."""
        return asdict(self._place)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from there."""
        # The iterator must not refer back to this object. `datasets` reads interleaved streams on threads, and an
        # iterator in a cycle is closed wherever the garbage collector happens to run: in a thread that is just
        # starting it would wait for a lock which that thread holds.
        self._place = Place(**state)
        read = of_stream if isinstance(self._dataset, IterableDataset) else of_dataset
        self._coming = read(self._dataset, self._place, self._orders)

    def release(self) -> None:
        """Close the stream; the next prompt opens it again at the same place."""
        self.load_state_dict(self.state_dict())

    def take(self, count: int) -> list[dict[str, Any]]:
        """The next `count` rows."""
        rows = [next(self._coming) for _ in range(count)]
        self._place.drawn += count
        return rows


@dataclass(frozen=True)
class Orders:
    """The order of the rows in each pass or block, a function of the seed alone."""

    seed: int
    shuffle: bool

    def mixed(self, passes: int, blocks: int = 0) -> int:
        """A seed of its own for every pass and block, unlike that of the sampler with the same seed."""
        return (self.seed * 1_000_003 + passes + 1 + blocks * 7_368_787) % 2**63

    def of(self, size: int, passes: int, blocks: int = 0) -> list[int]:
        if not self.shuffle:
            return list(range(size))
        return torch.randperm(size, generator=torch.Generator().manual_seed(self.mixed(passes, blocks))).tolist()


def of_dataset(dataset: Dataset, place: Place, orders: Orders) -> Iterator[dict[str, Any]]:
    passes, position = divmod(place.drawn, len(dataset))
    while True:
        for index in orders.of(len(dataset), passes)[position:]:
            yield dataset[index]
        passes, position = passes + 1, 0


def of_stream(dataset: IterableDataset, place: Place, orders: Orders) -> Iterator[dict[str, Any]]:
    returns = not refills_a_buffer(dataset)
    while True:
        # datasets shuffles shards, and what a shuffle buffer draws, by the epoch, unless it is 0.
        dataset.set_epoch(orders.mixed(place.passes) % (2**31 - 1) + 1 if orders.shuffle else 0)
        dataset.load_state_dict(place.stream)
        rows = iter(dataset)
        if place.stream is None:
            for _ in islice(rows, place.blocks * BLOCK):
                pass
        while block := list(islice(rows, BLOCK)):
            following = dataset.state_dict() if returns else None
            for index in orders.of(len(block), place.passes, place.blocks)[place.rows :]:
                place.rows += 1
                if place.rows == len(block):
                    place.blocks, place.rows, place.stream = place.blocks + 1, 0, following
                yield block[index]
        if not place.blocks:
            raise ValueError("train_dataset is an empty stream: there is no fresh prompt to sample")
        place.passes, place.blocks, place.stream = place.passes + 1, 0, None


def refills_a_buffer(dataset: IterableDataset) -> bool:
    """Whether a shuffle buffer is part of the stream: datasets would fill it anew, with later rows."""
    parts = [dataset._ex_iterable]
    while parts:
        part = parts.pop()
        if isinstance(part, BufferShuffledExamplesIterable):
            return True
        parts += [part.ex_iterable] if hasattr(part, "ex_iterable") else getattr(part, "ex_iterables", [])
    return False

"""Fresh prompts for dynamic sampling, from a position that a checkpoint can restore."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from datasets.iterable_dataset import BufferShuffledExamplesIterable

# Rows of a stream are shuffled in blocks of this size. A resumed run reads at most one block again.
BLOCK = 1000


@dataclass
class Place:
    """The position of the next prompt, in built-in types for checkpoints."""

    drawn: int = 0
    passes: int = 0  # whole passes over a stream; this field and the next ones are for streams
    blocks: int = 0  # whole blocks drawn in this pass
    rows: int = 0  # rows drawn from the current block
    stream: dict[str, Any] | None = None  # state of the stream at the start of the block; None at the start of a pass


class PromptStream:
    """Draws prompts in passes over the dataset, each in a different order.

    The order depends on the seed and the pass. For a dataset it is a permutation. For a stream, the order of the
    shards changes with every pass, and rows are shuffled in blocks of 1,000. A position in a stream is a number of
    rows in a block and the state of the stream at the start of the block, which `datasets` restores without reading
    earlier shards. It cannot restore a stream with a shuffle buffer, so the current pass is read again.

    Args:
        dataset: rows with a prompt.
        seed: seed of the orders.
        shuffle: whether to shuffle.
    """

    def __init__(self, dataset: Dataset | IterableDataset, *, seed: int, shuffle: bool = True) -> None:
        # Reading a stream changes its state, so this stream must not be shared.
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
        """Return the position to resume from, for `load_state_dict`."""
        return asdict(self._place)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the position that `state_dict` returned."""
        # The iterator must not refer back to this object. `datasets` reads interleaved streams on threads, and the
        # garbage collector closes an iterator in a reference cycle on whatever thread it runs. On a thread that is
        # just starting, that would wait for a lock which the thread itself holds.
        self._place = Place(**state)
        read = stream_rows if isinstance(self._dataset, IterableDataset) else dataset_rows
        self._rows = read(self._dataset, self._place, self._orders)

    def release(self) -> None:
        """Close the stream; the next prompt opens it again at the same position."""
        self.load_state_dict(self.state_dict())

    def take(self, count: int) -> list[dict[str, Any]]:
        """Return the next `count` rows."""
        rows = [next(self._rows) for _ in range(count)]
        self._place.drawn += count
        return rows


@dataclass(frozen=True)
class Orders:
    """The order of the rows in each pass or block, a function of the seed alone."""

    seed: int
    shuffle: bool

    def mixed_seed(self, passes: int, blocks: int = 0) -> int:
        """Return a different seed for every pass and block, and never the seed itself, which TRL's sampler uses."""
        return (self.seed * 1_000_003 + passes + 1 + blocks * 7_368_787) % 2**63

    def order(self, size: int, passes: int, blocks: int = 0) -> list[int]:
        """Return the order of the `size` rows of a pass or block."""
        if not self.shuffle:
            return list(range(size))
        return torch.randperm(size, generator=torch.Generator().manual_seed(self.mixed_seed(passes, blocks))).tolist()


def dataset_rows(dataset: Dataset, place: Place, orders: Orders) -> Iterator[dict[str, Any]]:
    passes, position = divmod(place.drawn, len(dataset))
    while True:
        for index in orders.order(len(dataset), passes)[position:]:
            yield dataset[index]
        passes, position = passes + 1, 0


def stream_rows(dataset: IterableDataset, place: Place, orders: Orders) -> Iterator[dict[str, Any]]:
    restorable = not has_shuffle_buffer(dataset)
    while True:
        # `datasets` shuffles shards and shuffle buffers by the epoch, unless it is 0.
        dataset.set_epoch(orders.mixed_seed(place.passes) % (2**31 - 1) + 1 if orders.shuffle else 0)
        dataset.load_state_dict(place.stream)
        rows = iter(dataset)
        if place.stream is None:
            for _ in islice(rows, place.blocks * BLOCK):
                pass
        while block := list(islice(rows, BLOCK)):
            following = dataset.state_dict() if restorable else None
            for index in orders.order(len(block), place.passes, place.blocks)[place.rows :]:
                place.rows += 1
                if place.rows == len(block):
                    place.blocks, place.rows, place.stream = place.blocks + 1, 0, following
                yield block[index]
        if not place.blocks:
            raise ValueError("train_dataset is an empty stream; dynamic sampling needs fresh prompts")
        place.passes, place.blocks, place.stream = place.passes + 1, 0, None


def has_shuffle_buffer(dataset: IterableDataset) -> bool:
    """Whether the stream has a shuffle buffer, which `datasets` would refill with later rows when it resumes."""
    parts = [dataset._ex_iterable]
    while parts:
        part = parts.pop()
        if isinstance(part, BufferShuffledExamplesIterable):
            return True
        parts += [part.ex_iterable] if hasattr(part, "ex_iterable") else getattr(part, "ex_iterables", [])
    return False

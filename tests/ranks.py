"""Call a function on several ranks, which are threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from torch import Tensor


def on_ranks(function: Callable[..., Any], parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Call the function for every part, each with a mean over the tokens of all parts as the last argument."""
    barrier, sums = Barrier(len(parts)), [(0.0, 0.0)] * len(parts)

    def work(rank: int) -> Any:
        def mean(values: Tensor, among: Tensor) -> Tensor:
            barrier.wait()  # every rank has read the sums of the last mean
            sums[rank] = (values.double().masked_fill(~among, 0.0).sum(), among.sum())
            barrier.wait()
            total, count = (sum(column) for column in zip(*sums, strict=True))
            return (total / count).to(values.dtype)

        return function(*parts[rank], mean)

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(work, range(len(parts))))

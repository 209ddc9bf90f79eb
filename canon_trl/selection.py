"""Selection among the tokens of all ranks, without gathering them: only counts and sums cross the ranks.

Every selection and every mean is a *search*: a generator that yields this rank's counts and sums, receives their sums
over all ranks, and returns its result. [`together`] runs several searches at once, with one all-reduce per round:

```python
(chosen, _), ((average,), count) = together(
    reduce, largest(values, among, counts, order, below=below), means([values], among)
)
```

A search finds the k-th largest of integer keys digit by digit, from the highest digit on. In each round every rank
takes the keys that match the digits found so far and counts them by their next digit, for all k at once. The sums over
the ranks determine the next digit. A float32 takes four rounds of 256 counts per k. The result is exact: bit for bit
the choice of a stable sort of all values in sampling order, however tokens are distributed over ranks.

The number of rounds and the shapes that a search yields depend on dtypes, the number of counts and `below`, never on
the tokens. So every rank joins the same collectives, even without candidates, and the host never waits for the device.
"""

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

Found = TypeVar("Found")
Reduce = Callable[[Tensor], Tensor]
Search = Generator[Tensor, Tensor, Found]

BITS = 8  # per digit
BINS = 2**BITS
PART = 2**18  # tokens per chunk, where chunks save memory
LANES = 256  # counters per bin on a GPU


def alone(sums: Tensor) -> Tensor:
    """Return the input: the `reduce` of a run with a single rank."""
    return sums


def together(reduce: Reduce, *searches: Search[Any]) -> list[Any]:
    """Run the searches in the same rounds and return their results.

    Args:
        reduce: sums a float64 vector over the ranks, which keeps counts below 2^53 exact. Called once per round.
    """
    search = parallel(*searches)
    local = next(search)
    while True:
        try:
            local = search.send(reduce(local))
        except StopIteration as stop:
            return list(stop.value)


def parallel(*searches: Search[Any]) -> Search[list[Any]]:
    """Combine searches into one, which yields the vectors of all unfinished searches as one vector per round."""
    found: list[Any] = [None] * len(searches)
    waiting = {place: next(search) for place, search in enumerate(searches)}
    while waiting:
        total = yield torch.cat([local.double().flatten() for local in waiting.values()])
        parts = torch.split(total, [local.numel() for local in waiting.values()])
        for (place, local), part in zip(list(waiting.items()), parts, strict=True):
            try:
                waiting[place] = searches[place].send(part.view(local.shape))
            except StopIteration as stop:
                found[place] = stop.value
                del waiting[place]
    return found


def added(*local: Tensor) -> Search[Tensor]:
    """Sum 0-d tensors over the ranks, `(len(local),)` in float64. Takes one round."""
    return (yield torch.stack([each.double() for each in local]))


def means(values: Sequence[Tensor], among: Tensor) -> Search[tuple[list[Tensor], Tensor]]:
    """Average each of the `values` over the tokens that `among` marks, and count these tokens. Takes one round.

    Sums are in float64 and each mean is rounded once, to the dtype of its values, so that it does not depend on how
    tokens are distributed over ranks. The mean of no tokens is 0.

    Returns:
        A list of 0-d means, and the count, 0-d in float64.
    """
    local = [total(each.detach().masked_fill(~among, 0)) for each in values]
    *totals, count = (yield from added(*local, among.sum())).unbind()
    rounded = [(sums / count.clamp(min=1)).to(each.dtype) for sums, each in zip(totals, values, strict=True)]
    return rounded, count


def largest(
    values: Tensor, among: Tensor, counts: Tensor, order: Tensor, *, below: int, summed: Tensor | None = None
) -> Search[tuple[Tensor, Tensor]]:
    """Choose the k largest of the `values` that `among` marks, for every k in `counts`; ties go to the first in order.

    -0.0 equals 0.0 and NaN is never chosen. With fewer than k candidates, all are chosen. Takes four rounds for
    float32, eight for float64, and one more for every eight bits of `below`.

    Args:
        values: floating-point numbers of any shape.
        among: bool, same shape.
        counts: `(K,)`, at least 0 and the same on all ranks.
        order: the sampling order: non-negative integers, same shape, unique over the tokens of all ranks.
        below: an upper bound that `order` stays below.
        summed: `(M,)`, further counts for which only the sum is computed, in the same rounds.

    Returns:
        The choices, `(K, ...)` bool; and the sums, `(M,)` in float64, see [`sums_of_largest`].
    """
    summed, shape = counts[:0] if summed is None else summed, values.shape
    values, among, keys = with_keys(values, among)
    earlier = (below - 1 - order.flatten()).to(torch.int32 if below <= 2**31 else torch.int64)
    bits = BITS * max(1, math.ceil((below - 1).bit_length() / BITS))
    paths = Paths(among, torch.cat([counts.long(), summed.long()]))
    least = yield from paths.descend(keys, signed=True)
    sums = sums_down_to(least[len(counts) :], paths.left[len(counts) :], values, among, keys)
    paths.keep(len(counts))
    last, totals = yield from parallel(paths.descend(earlier, bits), sums)
    return at_least(keys, least[: len(counts)], earlier, last, among, counts).view(len(counts), *shape), totals


def sums_of_largest(values: Tensor, among: Tensor, counts: Tensor) -> Search[Tensor]:
    """Sum the k largest of the `values` that `among` marks, for every k in `counts`.

    Each rank adds its own values in float64, then the sums are added over the ranks. So a sum may differ between two
    distributions of the tokens over ranks, by at most k * 2^-52 times the sum of the k magnitudes. Takes five rounds,
    nine for float64: ties need no order, because equal values have the same sum.

    Returns:
        `(K,)` in float64; the sum of all candidates if they are fewer than k, 0 if there are none.
    """
    values, among, keys = with_keys(values, among)
    paths = Paths(among, counts.long())
    least = yield from paths.descend(keys, signed=True)
    return (yield from sums_down_to(least, paths.left, values, among, keys))


def draw(among: Tensor, counts: Tensor, response: Tensor, position: Tensor, *, seed: int, step: int) -> Search[Tensor]:
    """Draw k of the tokens that `among` marks at random, for every k in `counts`. Takes eight rounds.

    The draw takes the k largest of 64 bits per token, which are a one-to-one function of (response, position) for each
    (seed, step). So no two tokens tie, every rank computes the bits of its own tokens, and the draw depends neither on
    the distribution of tokens over ranks nor on padding. A smaller draw is part of a larger one.

    Args:
        among: bool of any shape.
        counts: `(K,)`, at least 0 and the same on all ranks; with fewer candidates, all are drawn.
        response, position: integers that broadcast to that shape: the response of each token, and its position there,
            below 2^32. Together they identify a token over all ranks.
        seed, step: determine the draw.

    Returns:
        `(K, ...)` bool.
    """
    keys = (response.long() << 32 | position.long()).expand(among.shape).flatten()
    high, low = random_bits(keys, seed, step)
    flat = among.flatten()
    paths = Paths(flat, counts.long())
    least = yield from paths.descend(high, signed=True)
    last = yield from paths.descend(low, signed=True)
    return at_least(high, least, low, last, flat, counts).view(len(counts), *among.shape)


def at_least(keys: Tensor, least: Tensor, further: Tensor, last: Tensor, among: Tensor, counts: Tensor) -> Tensor:
    """`(K, N)`: for each k, the candidates whose (key, further key) is the k-th largest or larger."""
    chosen = [
        among & (count > 0) & ((keys > key) | ((keys == key) & (further >= end)))
        for key, end, count in zip(least, last, counts, strict=True)
    ]
    return torch.stack(chosen)


class Paths:
    """The digits found so far of the k-th largest integer key, for several k.

    A path is the set of keys that match these digits. Several k share a path until their digits differ; its number is
    that of the first k on it.

    Args:
        among: `(N,)`, this rank's candidates.
        counts: `(K,)` int64, each k.

    Attributes:
        left: `(K,)`, how many of the k largest keys match all digits found so far.
    """

    def __init__(self, among: Tensor, counts: Tensor) -> None:
        self.left = counts
        self._path = torch.zeros_like(counts)
        self._number = 1  # number of paths; keys on none of them share one more
        # Maps the counter that a key incremented last to the first counter of the key's current path.
        self._places = (~among).int()
        self._starts = self._places.new_zeros(2)
        self._starts[1] = BINS

    def keep(self, count: int) -> None:
        """Drop all but the first `count` searches."""
        self.left, self._path, self._number = self.left[:count], self._path[:count], count
        self._starts.clamp_(max=count * BINS)

    def descend(self, keys: Tensor, bits: int | None = None, *, signed: bool = False) -> Search[Tensor]:
        """Find the k-th largest of the `keys` by their lowest `bits`, `(K,)` int64. Takes one round per eight bits."""
        size = keys.element_size()
        found = torch.zeros_like(self.left)
        for byte in reversed(range(size if bits is None else bits // BITS)):
            # The top bytes 128 to 255 of signed keys are negative, so they sort below 0 to 127.
            shift = BINS // 2 if signed and byte == size - 1 else 0
            digit = yield from self._advance(keys.view(torch.uint8)[byte::size], shift)
            found += (digit - shift) << (BITS * byte)
        return found

    def _advance(self, digits: Tensor, shift: int) -> Search[Tensor]:
        counters = self._number * BINS
        local = torch.zeros(counters + BINS, dtype=torch.int64, device=digits.device)
        for places, part in zip(torch.split(self._places, PART), torch.split(digits, PART), strict=True):
            places.copy_(self._starts.index_select(0, places).add_(part))
            local += count_places(places, counters + BINS)
        summed = yield local[:counters].view(self._number, BINS)
        or_higher = summed.long().roll(shift, 1).flip(1).cumsum(1).flip(1)[self._path]  # (K, BINS): keys by digit
        self.left = self.left.minimum(or_higher[:, 0])
        digit = (or_higher >= self.left.unsqueeze(1)).sum(1) - 1
        self.left = self.left - functional.pad(or_higher, (0, 1)).gather(1, digit.unsqueeze(1) + 1).squeeze(1)
        node = self._path * BINS + (digit + shift) % BINS
        self._path = (node.unsqueeze(1) == node).int().argmax(1)  # the first with this node
        self._number = len(node)
        self._starts = self._starts.new_full((counters + BINS,), self._number * BINS)
        self._starts[node] = (self._path * BINS).int()
        return digit


def count_places(places: Tensor, bins: int) -> Tensor:
    """Count how often each of 0, 1, ..., bins - 1 occurs in `places`, `(bins,)` int64."""
    if places.device.type == "cpu":
        return torch.bincount(places, minlength=bins)
    return count_in_lanes(places, bins)  # on a GPU, bincount makes the host wait for the largest place


def count_in_lanes(places: Tensor, bins: int) -> Tensor:
    """[`count_places`] with many counters per bin, so that few threads add to the same one."""
    lanes = torch.arange(len(places), device=places.device) % LANES
    counters = torch.zeros(bins * LANES, dtype=torch.int64, device=places.device)
    return counters.scatter_add_(0, places * LANES + lanes, torch.ones_like(lanes)).view(bins, LANES).sum(1)


def with_keys(values: Tensor, among: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flatten to values in at least float32, candidates without NaN, and integer keys that sort like the values."""
    values = values.detach().flatten()
    values = values.to(torch.promote_types(values.dtype, torch.float32)) + 0.0  # -0.0 becomes 0.0
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int64)
    return values, among.flatten() & ~values.isnan(), flip_negatives(bits)


def flip_negatives(bits: Tensor) -> Tensor:
    """Turn the bits of floats into integers that sort like the floats. The function is its own inverse."""
    return bits ^ ((bits >> (8 * bits.element_size() - 1)) & torch.iinfo(bits.dtype).max)


def sums_down_to(least: Tensor, left: Tensor, values: Tensor, among: Tensor, keys: Tensor) -> Search[Tensor]:
    """Sum the values whose key is above `least`, plus `left` values whose key equals it, `(M,)` each."""
    parts = [torch.split(part, PART) for part in (values, among, keys)]
    above = [
        torch.stack([torch.where(also & (key > end), value, 0.0).sum(dtype=torch.float64) for end in least])
        for value, also, key in zip(*parts, strict=True)
        if len(least)
    ]
    sums = yield torch.stack(above).sum(0) if above else values.new_zeros(0)
    return sums + torch.where(left > 0, left * flip_negatives(least.to(keys.dtype)).view(values.dtype).double(), 0.0)


def total(values: Tensor) -> Tensor:
    """Sum in float64, 0-d. It sums in chunks, because a CPU first makes a copy in float64."""
    return torch.stack([part.sum(dtype=torch.float64) for part in torch.split(values.flatten(), PART)]).sum()


def random_bits(keys: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Return the halves of 64 random bits per int64 key, one-to-one with the key for each seed and step."""
    salt = splitmix64(splitmix64(keys.new_full((), seed % 2**63)) + step)
    bits = [splitmix64(part ^ salt) for part in torch.split(keys, PART)]
    return torch.cat([(part >> 32).int() for part in bits]), torch.cat([part.int() for part in bits])


def splitmix64(state: Tensor) -> Tensor:
    """Compute SplitMix64 (Steele, Lea and Flood 2014) in int64 with wraparound."""
    state = state + (0x9E3779B97F4A7C15 - 2**64)
    state = (state ^ shift_right(state, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    state = (state ^ shift_right(state, 27)) * (0x94D049BB133111EB - 2**64)
    return state ^ shift_right(state, 31)


def shift_right(state: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, where int64 would repeat the sign."""
    return torch.bitwise_and(state >> bits, 2 ** (64 - bits) - 1)

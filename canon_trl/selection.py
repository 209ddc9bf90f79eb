"""Choosing among the tokens of all ranks without gathering them: counts and sums are added over the ranks instead.

Every choice and every mean is a *search*: a generator that yields this rank's counts and sums, is sent those of all
ranks, and returns what it found. [`together`] runs several searches in the same rounds, one all-reduce a round:

```python
(chosen, _), ((average,), count) = together(
    reduce, largest(values, among, counts, order, below=below), means([values], among)
)
```

The k-th largest of integer keys is found digit by digit, the highest digit first. In one round every rank counts, for
all k at once, the keys that agree with the digits found so far by their next digit; the sums over the ranks tell which
digit the k-th largest key has. A float32 takes four rounds of 256 counts for each k. This is exact: the choice is bit
for bit that of a stable sort of all values in sampling order, however the tokens are dealt to the ranks.

How many rounds a search takes and what it yields in each depends on dtypes, on the number of counts and on `below`,
never on the tokens. So all ranks meet in the same collectives, also one without candidates, and the host does not wait
for the device.
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

BITS = 8  # of a digit
BINS = 2**BITS
PART = 2**18  # tokens that are worked on at a time where that saves memory
LANES = 256  # counters per place on a GPU


def alone(sums: Tensor) -> Tensor:
    """The `reduce` of a single rank."""
    return sums


def together(reduce: Reduce, *searches: Search[Any]) -> list[Any]:
    """Run the searches in the same rounds and return what each has found.

    Args:
        reduce: adds a float64 vector over the ranks, which keeps counts below 2^53 exact. It is called once a round.
    """
    search = parallel(*searches)
    local = next(search)
    while True:
        try:
            local = search.send(reduce(local))
        except StopIteration as stop:
            return list(stop.value)


def parallel(*searches: Search[Any]) -> Search[list[Any]]:
    """The searches as one: in each round it yields what those that have not ended yield, as one vector."""
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
    """The sums of 0-d tensors over the ranks, `(len(local),)` in float64. One round."""
    return (yield torch.stack([each.double() for each in local]))


def means(values: Sequence[Tensor], among: Tensor) -> Search[tuple[list[Tensor], Tensor]]:
    """The mean of each of the `values` over the tokens that `among` marks, and the number of those. One round.

    Sums are taken in float64 and each mean is rounded once, to the dtype of its values, so that it does not depend on
    how the tokens are dealt to the ranks. The mean of nothing is 0.

    Returns:
        A list of 0-d tensors; and the number, 0-d in float64.
    """
    local = [total(each.detach().masked_fill(~among, 0)) for each in values]
    *everyones, count = (yield from added(*local, among.sum())).unbind()
    rounded = [(sums / count.clamp(min=1)).to(each.dtype) for sums, each in zip(everyones, values, strict=True)]
    return rounded, count


def largest(
    values: Tensor, among: Tensor, counts: Tensor, order: Tensor, *, below: int, summed: Tensor | None = None
) -> Search[tuple[Tensor, Tensor]]:
    """The k largest of the `values` that `among` marks, for every k in `counts`; of equal values the first in order.

    -0.0 equals 0.0, NaN is never chosen, and all candidates are chosen where they are fewer than k. It takes four
    rounds for float32, eight for float64, and one more for every eight bits of `below`.

    Args:
        values: floating-point numbers of any shape.
        among: bool, of that shape.
        counts: `(K,)`, at least 0 and the same on all ranks.
        order: integers of that shape, 0 or more and different for all tokens of all ranks: the sampling order.
        below: more than every entry of `order`.
        summed: `(M,)`, further counts, for which the sum alone is wanted; it comes with the same rounds.

    Returns:
        The choices, `(K, ...)` bool; and the sums, `(M,)` in float64, see [`sums_of_largest`].
    """
    summed, shape = counts[:0] if summed is None else summed, values.shape
    values, among, keys = comparable(values, among)
    earlier = (below - 1 - order.flatten()).to(torch.int32 if below <= 2**31 else torch.int64)
    bits = BITS * max(1, math.ceil((below - 1).bit_length() / BITS))
    paths = Paths(among, torch.cat([counts.long(), summed.long()]))
    least = yield from paths.descend(keys, signed=True)
    sums = sums_down_to(least[len(counts) :], paths.left[len(counts) :], values, among, keys)
    paths.keep(len(counts))
    last, totals = yield from parallel(paths.descend(earlier, bits), sums)
    return at_least(keys, least[: len(counts)], earlier, last, among, counts).view(len(counts), *shape), totals


def sums_of_largest(values: Tensor, among: Tensor, counts: Tensor) -> Search[Tensor]:
    """The sum of the k largest of the `values` that `among` marks, for every k in `counts`.

    Exactly those are added, in float64 on each rank and then over the ranks. So a sum may differ between two ways of
    dealing the tokens to ranks, by at most k * 2^-52 times the sum of the k magnitudes. It takes five rounds, nine for
    float64: the sums of equal values do not depend on which of them are chosen.

    Returns:
        `(K,)` in float64; of all candidates where they are fewer than k, 0 where there are none.
    """
    values, among, keys = comparable(values, among)
    paths = Paths(among, counts.long())
    least = yield from paths.descend(keys, signed=True)
    return (yield from sums_down_to(least, paths.left, values, among, keys))


def draw(among: Tensor, counts: Tensor, response: Tensor, position: Tensor, *, seed: int, step: int) -> Search[Tensor]:
    """For every k in `counts`, k of the tokens that `among` marks, at random. Eight rounds.

    The k largest of 64 bits per token, a one-to-one function of (response, position) for each (seed, step). So no two
    tokens tie, every rank computes the bits of its own tokens, and the draw depends neither on how tokens are dealt to
    the ranks nor on how far responses are padded. A smaller draw is part of a larger one.

    Args:
        among: bool of any shape.
        counts: `(K,)`, at least 0 and the same on all ranks; all candidates are drawn where they are fewer.
        response, position: integers that broadcast to that shape: each token's response, and its place in it, below
            2^32. Together they differ for all tokens of all ranks.
        seed, step: the draw is a function of these.

    Returns:
        `(K, ...)` bool.
    """
    keys = (response.long() << 32 | position.long()).expand(among.shape).flatten()
    high, low = hashed(keys, seed, step)
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
    """How far the k-th largest of integer keys are known, for several k.

    All keys that agree with the digits found so far are on a path. Two k share a path until their digits differ; it
    then has the number of the first of them.

    Args:
        among: `(N,)`, this rank's candidates.
        counts: `(K,)` int64, each k.

    Attributes:
        left: `(K,)`, how many of the k largest are among the keys that agree with all digits found so far.
    """

    def __init__(self, among: Tensor, counts: Tensor) -> None:
        self.left = counts
        self._path = torch.zeros_like(counts)
        self._number = 1  # of paths; a key that is on none of them is on one more
        # By the counter that a key added to last, the first counter of the path that it is on now.
        self._places = (~among).int()
        self._starts = self._places.new_zeros(2)
        self._starts[1] = BINS

    def keep(self, count: int) -> None:
        """Forget all but the first k."""
        self.left, self._path, self._number = self.left[:count], self._path[:count], count
        self._starts.clamp_(max=count * BINS)

    def descend(self, keys: Tensor, bits: int | None = None, *, signed: bool = False) -> Search[Tensor]:
        """The k-th largest of the `keys`, `(K,)` int64, by their lowest `bits`; one round for every eight of them."""
        size = keys.element_size()
        found = torch.zeros_like(self.left)
        for byte in reversed(range(size if bits is None else bits // BITS)):
            # By the top byte of a signed key, 128 to 255, the negative ones, come before 0 to 127.
            shift = BINS // 2 if signed and byte == size - 1 else 0
            digit = yield from self._advance(keys.view(torch.uint8)[byte::size], shift)
            found += (digit - shift) << (BITS * byte)
        return found

    def _advance(self, digits: Tensor, shift: int) -> Search[Tensor]:
        counters = self._number * BINS
        local = torch.zeros(counters + BINS, dtype=torch.int64, device=digits.device)
        for places, part in zip(torch.split(self._places, PART), torch.split(digits, PART), strict=True):
            places.copy_(self._starts.index_select(0, places).add_(part))
            local += counted(places, counters + BINS)
        everyones = yield local[:counters].view(self._number, BINS)
        or_higher = everyones.long().roll(shift, 1).flip(1).cumsum(1).flip(1)[self._path]  # (K, BINS): keys by digit
        self.left = self.left.minimum(or_higher[:, 0])
        digit = (or_higher >= self.left.unsqueeze(1)).sum(1) - 1
        self.left = self.left - functional.pad(or_higher, (0, 1)).gather(1, digit.unsqueeze(1) + 1).squeeze(1)
        node = self._path * BINS + (digit + shift) % BINS
        self._path = (node.unsqueeze(1) == node).int().argmax(1)  # the first with this node
        self._number = len(node)
        self._starts = self._starts.new_full((counters + BINS,), self._number * BINS)
        self._starts[node] = (self._path * BINS).int()
        return digit


def counted(places: Tensor, bins: int) -> Tensor:
    """How often each of 0, 1, ..., bins - 1 occurs in `places`, `(bins,)` int64."""
    if places.device.type == "cpu":
        return torch.bincount(places, minlength=bins)
    return counted_in_lanes(places, bins)  # on a GPU bincount makes the host wait for the largest place


def counted_in_lanes(places: Tensor, bins: int) -> Tensor:
    """[`counted`] with many counters for each place, so that few threads add to the same one."""
    lanes = torch.arange(len(places), device=places.device) % LANES
    counters = torch.zeros(bins * LANES, dtype=torch.int64, device=places.device)
    return counters.scatter_add_(0, places * LANES + lanes, torch.ones_like(lanes)).view(bins, LANES).sum(1)


def comparable(values: Tensor, among: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat: the values in at least float32, the candidates without NaN, and integers that compare as the values do."""
    values = values.detach().flatten()
    values = values.to(torch.promote_types(values.dtype, torch.float32)) + 0.0  # -0.0 becomes 0.0
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int64)
    return values, among.flatten() & ~values.isnan(), ordered(bits)


def ordered(bits: Tensor) -> Tensor:
    """The bits of a float as an integer, to one that compares as the floats do; applied twice it changes nothing."""
    return bits ^ ((bits >> (8 * bits.element_size() - 1)) & torch.iinfo(bits.dtype).max)


def sums_down_to(least: Tensor, left: Tensor, values: Tensor, among: Tensor, keys: Tensor) -> Search[Tensor]:
    """`(M,)`: the sum of the values with a key above the least one, and of as many with that key as are left."""
    parts = [torch.split(part, PART) for part in (values, among, keys)]
    above = [
        torch.stack([torch.where(also & (key > end), value, 0.0).sum(dtype=torch.float64) for end in least])
        for value, also, key in zip(*parts, strict=True)
        if len(least)
    ]
    sums = yield torch.stack(above).sum(0) if above else values.new_zeros(0)
    return sums + torch.where(left > 0, left * ordered(least.to(keys.dtype)).view(values.dtype).double(), 0.0)


def total(values: Tensor) -> Tensor:
    """The sum in float64, 0-d; in parts, since a CPU makes a copy in float64 first."""
    return torch.stack([part.sum(dtype=torch.float64) for part in torch.split(values.flatten(), PART)]).sum()


def hashed(keys: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Of 64 random bits per int64 key the upper and the lower half; for each seed and step one-to-one with the key."""
    salt = mixed(mixed(keys.new_full((), seed % 2**63)) + step)
    bits = [mixed(part ^ salt) for part in torch.split(keys, PART)]
    return torch.cat([(part >> 32).int() for part in bits]), torch.cat([part.int() for part in bits])


def mixed(state: Tensor) -> Tensor:
    """The output of SplitMix64 (Steele, Lea and Flood 2014), in int64 that wraps around."""
    state = state + (0x9E3779B97F4A7C15 - 2**64)
    state = (state ^ shifted(state, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    state = (state ^ shifted(state, 27)) * (0x94D049BB133111EB - 2**64)
    return state ^ shifted(state, 31)


def shifted(state: Tensor, bits: int) -> Tensor:
    """Shifted to the right with zeros for the sign, which int64 would repeat."""
    return torch.bitwise_and(state >> bits, 2 ** (64 - bits) - 1)

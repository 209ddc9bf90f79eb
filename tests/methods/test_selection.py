"""Selection over all ranks by counts and sums matches a full sort, however tokens are distributed."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from canon_trl.policy_losses.covariance_over_ranks import Placement, clip_cov_over_ranks, kl_cov_over_ranks
from canon_trl.selection import added, alone, count_in_lanes, draw, largest, means, sums_of_largest, together

RANKS = (1, 2, 4)
FLOATS = {torch.float32: 32, torch.float64: 64, torch.float16: 16}
# Ties, both zeros, neighbours, the extremes of float32, infinities and NaN.
SPECIAL = [0.0, -0.0, 1.0, 1.0 + 2**-23, -1.0, 2.0**-149, -(2.0**-149), 3.4e38, -3.4e38, math.inf, -math.inf, math.nan]


class Ranks:
    """Threads that act as ranks; their `reduce` waits until each has a tensor of the same shape."""

    def __init__(self, count):
        self.count, self.sent = count, [[] for _ in range(count)]
        self._met = threading.Barrier(count, timeout=20)
        self._shared = [None] * count

    def run(self, search):
        """Run `search(rank)` on every rank and return the results."""

        def work(rank):
            try:
                return together(lambda local: self._reduce(rank, local), search(rank))[0]
            except Exception as error:
                self._met.abort()  # the others need not wait
                return error

        with ThreadPoolExecutor(self.count) as threads:
            found = list(threads.map(work, range(self.count)))
        for error in (each for each in found if isinstance(each, Exception)):
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        assert not any(isinstance(each, Exception) for each in found), "a rank left the others waiting"
        return found

    def _reduce(self, rank, local):
        self.sent[rank].append(local.nbytes)
        self._shared[rank] = local
        self._met.wait()
        total = torch.stack(self._shared).sum(0)
        self._met.wait()
        return total


def rows_of(ranks, rows, seed):
    """The rows of each rank, in shuffled order; a rank may have none."""
    shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return list(shuffled.tensor_split(ranks))


def gathered(parts, dealt, dim=0):
    """The rows of all ranks in sampling order."""
    return torch.cat(parts, dim).index_select(dim, torch.cat(dealt).argsort())


def sorted_choice(values, among, count):
    """The choice of a stable sort of all candidates in sampling order."""
    places = [place for place, also in enumerate((among & ~values.isnan()).flatten().tolist()) if also]
    numbers = values.flatten().tolist()
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[sorted(places, key=lambda place: -numbers[place])[: int(count)]] = True
    return chosen.view(values.shape)


def in_order(rows, width):
    return torch.arange(rows * width).view(rows, width)


@st.composite
def tables(draw_from, dtypes=tuple(FLOATS)):
    rows, width = draw_from(st.integers(1, 6)), draw_from(st.integers(1, 5))
    dtype = draw_from(st.sampled_from(dtypes))
    number = st.sampled_from(SPECIAL) | st.floats(-4, 4, width=FLOATS[dtype])
    size = {"min_size": rows * width, "max_size": rows * width}
    values = torch.tensor(draw_from(st.lists(number, **size)), dtype=dtype).view(rows, width)
    among = torch.tensor(draw_from(st.lists(st.booleans(), **size))).view(rows, width)
    return values, among, draw_from(st.integers(0, 99))


COUNTS = st.lists(st.integers(0, 32), min_size=1, max_size=4).map(torch.tensor)


@pytest.mark.parametrize("ranks", RANKS)
@given(table=tables(), counts=COUNTS, summed=COUNTS)
def test_the_choice_matches_a_full_sort(ranks, table, counts, summed):
    values, among, seed = table
    order, dealt = in_order(*values.shape), rows_of(ranks, len(values), seed)

    def search(rank):
        own = dealt[rank]
        return largest(values[own], among[own], counts, order[own], below=values.numel(), summed=summed)

    found = Ranks(ranks).run(search)
    chosen = gathered([choice for choice, _ in found], dealt, dim=1)
    assert torch.equal(chosen, torch.stack([sorted_choice(values, among, count) for count in counts]))
    for _, sums in found:
        for count, total in zip(summed, sums, strict=True):
            numbers = values[sorted_choice(values, among, count)].double()
            torch.testing.assert_close(total, numbers.sum(), rtol=1e-12, atol=1e-300, equal_nan=True)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 39, 40, 10**6])
def test_ties_go_to_tokens_sampled_first(ranks, count):
    """Of 40 equal candidates among 48 tokens, the first in sampling order win, on any rank."""
    values, among = torch.full((8, 6), -2.5), torch.ones(8, 6, dtype=torch.bool)
    among[3:5, :4] = False
    order, dealt = in_order(8, 6), rows_of(ranks, 8, seed=1)
    found = Ranks(ranks).run(
        lambda rank: largest(
            values[dealt[rank]], among[dealt[rank]], torch.tensor([count]), order[dealt[rank]], below=48
        )
    )
    chosen = gathered([choice[0] for choice, _ in found], dealt)
    assert chosen.flatten().nonzero().flatten().tolist() == order[among].tolist()[:count]


@pytest.mark.parametrize("below", [48, 2**16, 2**31, 2**33, 2**62])
def test_sampling_order_of_any_size(below):
    """The order reaches up to its bound, so that every digit distinguishes tokens."""
    values, among = torch.zeros(6, 8), torch.ones(6, 8, dtype=torch.bool)
    order = below - 1 - in_order(6, 8).flatten()[torch.randperm(48, generator=torch.Generator().manual_seed(0))]
    order = order.view(6, 8)
    (chosen, _), *_ = together(alone, largest(values, among, torch.tensor([5]), order, below=below))
    assert sorted(order[chosen[0]].tolist()) == [below - 48 + place for place in range(5)]


@pytest.mark.parametrize("candidates", ["one rank", "nobody"])
def test_ranks_without_candidates_join_the_same_rounds(candidates):
    values = torch.arange(32.0).view(8, 4)
    among = torch.zeros(8, 4, dtype=torch.bool)
    among[:2] = candidates == "one rank"
    counts, order, world = torch.tensor([3, 100]), in_order(8, 4), Ranks(4)
    dealt = list(torch.arange(8).tensor_split(4))

    def search(rank):
        own = dealt[rank]
        return largest(values[own], among[own], counts, order[own], below=32, summed=counts)

    found = world.run(search)
    assert all(sent == world.sent[0] for sent in world.sent) and len(world.sent[0]) == 5
    chosen = gathered([choice for choice, _ in found], dealt, dim=1)
    many = candidates == "one rank"
    assert chosen.sum((1, 2)).tolist() == ([3, 8] if many else [0, 0])
    assert found[3][1].tolist() == ([7.0 + 6 + 5, sum(range(8))] if many else [0.0, 0.0])


def test_by_hand():
    values = torch.tensor([[3.0, 1.0, 3.0], [math.nan, 3.0, -math.inf]])
    among = torch.tensor([[True, True, True], [True, True, True]])
    counts = torch.tensor([2, 5])
    (chosen, sums), *_ = together(alone, largest(values, among, counts, in_order(2, 3), below=6, summed=counts))
    assert chosen.tolist() == [
        [[True, False, True], [False, False, False]],
        [[True, True, True], [False, True, True]],
    ]
    assert sums.tolist() == [6.0, -math.inf]


# Means and sums


@pytest.mark.parametrize("ranks", RANKS)
@given(seed=st.integers(0, 10**6))
def test_means_do_not_depend_on_the_ranks(ranks, seed):
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(16, 64, generator=random) * torch.tensor(1e3) ** torch.randn(16, 64, generator=random)
    among = torch.rand(16, 64, generator=random) < 0.8
    dealt = rows_of(ranks, 16, seed)
    found = Ranks(ranks).run(lambda rank: means([values[dealt[rank]], -values[dealt[rank]]], among[dealt[rank]]))
    want = values[among].double().mean().float()
    for (mean, negative), count in found:
        assert mean.dtype == torch.float32 and torch.equal(mean, want) and torch.equal(negative, -want)
        assert count.item() == among.sum()


def test_means_of_nothing_and_of_masked_nan():
    values = torch.tensor([math.nan, 2.0, math.inf, 4.0])
    ((mean,), count), *_ = together(alone, means([values], torch.tensor([False, True, False, True])))
    assert (mean.item(), count.item()) == (3.0, 2.0)
    ((mean,), count), *_ = together(alone, means([values], torch.zeros(4, dtype=torch.bool)))
    assert (mean.item(), count.item()) == (0.0, 0.0)


def test_searches_share_their_rounds():
    values = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    among, counts = values > -1, torch.tensor([1, 4])
    rounds = []

    def reduce(local):
        rounds.append(local.numel())
        return local

    sums, (mean, count), totals = together(
        reduce, sums_of_largest(values, among, counts), means([values], among), added(values.sum(), among.sum())
    )
    # one path of 256 counters plus a sum, a count and two totals; then two paths; then the two sums
    assert rounds == [256 + 2 + 2, 512, 512, 512, 2]
    assert torch.equal(sums, together(alone, sums_of_largest(values, among, counts))[0])
    assert count.item() == among.sum() and totals[1].item() == among.sum()
    torch.testing.assert_close(mean[0], values[among].mean())


def test_counting_in_lanes():
    """The arithmetic of the GPU, on the CPU."""
    places = torch.randint(0, 512, (10_000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    places[:2000] = 7
    assert torch.equal(count_in_lanes(places, 768), torch.bincount(places, minlength=768))


# Draws


def drawn(among, counts, dealt, *, seed=0, step=0):
    response, position = torch.arange(len(among)).unsqueeze(1), torch.arange(among.shape[1])
    found = Ranks(len(dealt)).run(
        lambda rank: draw(among[dealt[rank]], counts, response[dealt[rank]], position, seed=seed, step=step)
    )
    return gathered(found, dealt, dim=1)


@given(table=tables(), counts=COUNTS)
def test_a_draw_does_not_depend_on_the_ranks(table, counts):
    _, among, seed = table
    draws = [drawn(among, counts, rows_of(ranks, len(among), seed + ranks), seed=seed) for ranks in RANKS]
    for found in draws:
        assert torch.equal(found, draws[0]) and not (found & ~among).any()
    assert draws[0].sum((1, 2)).tolist() == counts.clamp(max=among.sum()).tolist()


def test_draws_are_uniform_and_differ_by_seed_and_step():
    among, whole = torch.ones(8, 16, dtype=torch.bool), [torch.arange(8)]
    among[0, 0] = False
    draws = [
        drawn(among, torch.tensor([8]), whole, seed=seed, step=step)[0] for seed in range(20) for step in range(20)
    ]
    often = torch.stack(draws).sum(0)
    assert often[0, 0] == 0 and len({tuple(found.flatten().tolist()) for found in draws}) == 400
    expected = 400 * 8 / 127  # 25.2; binomial, so a standard deviation of 4.9
    assert ((often[among] - expected).abs() < 4.5 * 4.9).all()
    chi_square = ((often[among] - expected) ** 2 / expected).sum().item() / (1 - 8 / 127)
    assert 126 - 5 * 16 < chi_square < 126 + 5 * 16  # 126 degrees of freedom, a standard deviation of 15.9
    # also between successive steps: two draws share 8 * 8 / 127 tokens on average
    common = torch.stack([(a & b).sum() for a, b in pairwise(draws)]).float().mean().item()
    assert common == pytest.approx(64 / 127, abs=0.2)


def test_padding_and_the_count_do_not_change_the_draw():
    among = torch.ones(4, 6, dtype=torch.bool)
    few, many = drawn(among, torch.tensor([3, 9]), [torch.arange(4)])
    assert not (few & ~many).any()
    wider = torch.nn.functional.pad(among, (0, 5))
    assert torch.equal(drawn(wider, torch.tensor([3]), [torch.arange(4)])[0, :, :6], few)


# Clip-Cov and KL-Cov


def micro_batch(rows=8, width=24, seed=0):
    random = torch.Generator().manual_seed(seed)
    log_probs = -3 * torch.rand(rows, width, generator=random)
    old = log_probs + 0.1 * torch.randn(rows, width, generator=random)
    advantages = torch.randn(rows, generator=random).round(decimals=1)
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=random)
    return log_probs, old, advantages, mask


def among(response):
    """Placement in a rollout of 2^32 places, whose order takes four rounds."""
    return Placement(response=response, responses=2**20, width=2**12, seed=1, step=2)


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_policy_losses_select_the_same_tokens_on_one_two_and_four_ranks(name):
    log_probs, old, advantages, mask = micro_batch()
    results = []
    for ranks in RANKS:
        dealt, world = rows_of(ranks, 8, seed=ranks), Ranks(ranks)

        def search(rank, dealt=dealt):
            own = dealt[rank]
            if name == "clip_cov":
                options = {"clip": (0.2, 0.28), "ratio": 0.1, "low": 0.1}
                return clip_cov_over_ranks(log_probs[own], old[own], advantages[own], mask[own], among(own), **options)
            return kl_cov_over_ranks(log_probs[own], advantages[own], mask[own], among(own), fraction=0.1)

        found = world.run(search)
        assert all(sent == world.sent[0] for sent in world.sent)
        results.append((gathered([selected for selected, _ in found], dealt), found[0][1]))
        assert all(numbers == found[0][1] for _, numbers in found)
    selected, statistics = results[0]
    assert statistics["frac_gated"].item() == pytest.approx((selected.sum() / mask.sum()).item())
    assert selected.sum() == int(0.1 * mask.sum())
    for other, numbers in results[1:]:
        assert torch.equal(other, selected)
        for key, value in numbers.items():
            torch.testing.assert_close(value, statistics[key], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
def test_a_ranks_messages_do_not_grow_with_its_tokens(name):
    sizes = []
    for rows, width in ((2, 8), (16, 512)):
        log_probs, old, advantages, mask = micro_batch(rows, width)
        world = Ranks(1)
        if name == "clip_cov":
            search = clip_cov_over_ranks(log_probs, old, advantages, mask, among(torch.arange(rows)), clip=(0.2, 0.28))
        else:
            search = kl_cov_over_ranks(log_probs, advantages, mask, among(torch.arange(rows)))
        world.run(lambda rank, search=search: search)
        sizes.append(world.sent[0])
    assert sizes[0] == sizes[1] and len(sizes[0]) == 9
    assert sum(sizes[0]) < 64_000

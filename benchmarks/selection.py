"""Time how one rank chooses tokens: by digits, as in training, and by a sort of the same tokens.

    python benchmarks/selection.py

Both sides take turns in one process, in alternating order. Before it counted digits, canon_trl chose tokens by a
stable sort of everything, with a partial sort for the statistics. With several ranks, every rank sorted the tokens of
all ranks; here both sides have the tokens of one rank.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from step_time import paired, ratio
from torch import Tensor

from canon_trl.policy_losses.covariance_over_ranks import TOP_PERCENT, at_least_one, top_counts
from canon_trl.selection import alone, draw, largest, sums_of_largest, together

TOKENS = 2**22
WIDTH = 4096  # positions per response
PAIRS = 7
SHARE = 0.002  # share of the valid tokens to choose


def covariances(tokens: int) -> tuple[Tensor, Tensor]:
    """Covariances of mostly certain tokens, a quarter of them 0 as in groups without spread; and the mask."""
    random = torch.Generator().manual_seed(0)
    log_probs = -(torch.rand(tokens, generator=random) ** 4) * 8
    advantages = torch.randn(tokens // WIDTH, generator=random).masked_fill(torch.arange(tokens // WIDTH) % 4 == 0, 0)
    covariance = advantages.repeat_interleave(WIDTH) * (log_probs - log_probs.mean())
    return covariance, torch.rand(tokens, generator=random) < 0.9


def by_sort(values: Tensor, among: Tensor, count: Tensor) -> Tensor:
    order = values.masked_fill(~among, -torch.inf).argsort(descending=True, stable=True)
    chosen = torch.arange(order.numel()) < count
    return torch.zeros_like(chosen).scatter(0, order, chosen) & among


def tops_by_sort(covariance: Tensor, mask: Tensor) -> Tensor:
    falling = covariance.masked_fill(~mask, -torch.inf).topk(int(0.02 * mask.numel()) + 1).values
    cumulated = falling.masked_fill(falling == -torch.inf, 0.0).cumsum(dim=0)
    tops = [at_least_one(percent / 100, mask.sum()).long() for percent in TOP_PERCENT]
    return torch.stack([cumulated[top - 1] for top in tops])


def sides(tokens: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """For each choice, a function that makes it by digits and one that makes it by a sort."""
    covariance, mask = covariances(tokens)
    count, order = mask.sum(), torch.arange(tokens)
    budget, tops = at_least_one(SHARE, count), top_counts(count)
    candidates = mask & (covariance > 1) & (covariance < 5)
    response, position = torch.arange(tokens // WIDTH).unsqueeze(1), torch.arange(WIDTH)

    def chosen(summed: Tensor | None) -> Any:
        return together(alone, largest(covariance, mask, budget.view(1), order, below=tokens, summed=summed))

    def drawn() -> Any:
        searches = draw(candidates.view(-1, WIDTH), budget.view(1), response, position, seed=0, step=0)
        return together(alone, searches, sums_of_largest(covariance, mask, tops))

    assert torch.equal(chosen(None)[0][0][0], by_sort(covariance, mask, budget))
    return {
        "the largest": (lambda: chosen(None), lambda: by_sort(covariance, mask, budget)),
        "the largest, statistics (KL-Cov)": (
            lambda: chosen(tops),
            lambda: (by_sort(covariance, mask, budget), tops_by_sort(covariance, mask)),
        ),
        "a draw, statistics (Clip-Cov)": (
            drawn,
            lambda: (by_sort(torch.rand(tokens), candidates, budget), tops_by_sort(covariance, mask)),
        ),
    }


def seconds(side: Callable[[], Any]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def measure(tokens: int = TOKENS, pairs: int = PAIRS) -> dict[str, Any]:
    """The ratio of the time by digits to the time by a sort, median and quartiles; and the seconds by digits."""
    found = {}
    for name, (digits, sort) in sides(tokens).items():
        taken = paired(lambda digits=digits: seconds(digits), lambda sort=sort: seconds(sort), pairs=pairs)
        found[name] = ratio(taken) | {"seconds": min(first for first, _ in taken)}
    return {"tokens": tokens, "choices": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, result in measure(options.tokens, options.pairs)["choices"].items():
        lower, upper = result["quartiles"]
        print(f"{name}: {result['median']:.2f} ({lower:.2f} to {upper:.2f}) of the sort, {result['seconds']:.3f} s")


if __name__ == "__main__":
    main()

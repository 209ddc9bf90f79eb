"""Measure the speed of CANON's advantages: against a loop over responses, and as the number of prompts grows.

    python benchmarks/advantages.py

Every number is a ratio within this run. Estimators of this family are usually written as a loop that collects the
responses group by group from a tensor of scores and computes one advantage at a time. The script also times this loop
on Python floats. A vectorised call must not wait for the device either; on CUDA the script asserts that.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from canon_trl.advantages import canon_advantage

MU, ALPHA = 0.7, 0.9


def loop_over_responses(rewards: Sequence, metric: Sequence) -> list[list]:
    """CANON with alpha on the lower half, one response at a time; entries are 0-d tensors or floats."""
    advantages = []
    for group_rewards, group_metric in zip(rewards, metric, strict=True):
        size = len(group_rewards)
        order = sorted(range(size), key=lambda response: group_metric[response])
        lower = set(order[: size // 2])
        low = [group_rewards[response] for response in range(size) if response in lower]
        high = [group_rewards[response] for response in range(size) if response not in lower]
        low_mean, high_mean = sum(low) / len(low), sum(high) / len(high)
        group = []
        for response in range(size):
            reward = group_rewards[response]
            if response in lower:
                inter, intra = ALPHA * reward - high_mean, reward - low_mean
            else:
                inter, intra = reward - ALPHA * low_mean, reward - high_mean
            group.append(MU * inter + (1 - MU) * intra)
        advantages.append(group)
    return advantages


def vectorised(rewards: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    return canon_advantage(rewards, metric, mu=MU, alpha=ALPHA, alpha_group="lower")


def batch(prompts: int, size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rewards = (torch.rand(prompts, size, generator=generator) < 0.5).float()
    return rewards.to(device), torch.rand(prompts, size, generator=generator).to(device)


def seconds(function: Callable[[], object], repeats: int, device: str) -> float:
    """The median over the repeats, after one uncounted call."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="also write the numbers to this file")
    device = parser.parse_args().device
    results: dict[str, object] = {"device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}

    rewards, metric = batch(512, 16, "cpu")
    looped = torch.tensor([[float(a) for a in group] for group in loop_over_responses(rewards, metric)])
    torch.testing.assert_close(looped, vectorised(rewards, metric))
    on_device = (rewards.to(device), metric.to(device))
    ours = seconds(lambda: vectorised(*on_device), 200, device)
    tensor_loop = seconds(lambda: loop_over_responses(rewards, metric), 3, "cpu")
    floats = rewards.tolist(), metric.tolist()
    float_loop = seconds(lambda: loop_over_responses(*floats), 10, "cpu")
    results["512 x 16, loop over tensors / vectorised"] = tensor_loop / ours
    results["512 x 16, loop over floats / vectorised"] = float_loop / ours

    sizes = [512, 1024, 2048, 4096, 8192]
    batches = [batch(prompts, 64, device) for prompts in sizes]
    times = [seconds(partial(vectorised, *tables), 20, device) for tables in batches]
    for prompts, previous, current in zip(sizes[1:], times, times[1:], strict=False):
        results[f"{prompts} x 64 / {prompts // 2} x 64 (2 is linear)"] = current / previous

    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        vectorised(*on_device)
        torch.cuda.set_sync_debug_mode("default")
        results["waits for the device"] = 0

    for name, value in results.items():
        print(f"{name:55} {value:10.2f}" if isinstance(value, float) else f"{name:55} {value}")
    if path := parser.parse_args().json:
        with open(path, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()

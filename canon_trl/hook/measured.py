"""Numbers of the last optimiser step over all ranks, which controllers and loss terms read by name."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

# Logged numbers to ignore: the first is of one rank only, the second weights all micro-batches equally.
IGNORED = ("step_time", "entropy")


class MeanEntropy:
    """The mean entropy of trained tokens over micro-batches and ranks: sum_t(H_t) / tokens, in nats.

    Args:
        accelerator: sums over the ranks.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        # On this rank: the sum of the entropies, and the number of tokens.
        self.totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)

    def add(self, entropies: Tensor, mask: Tensor) -> None:
        """Add a micro-batch.

        Args:
            entropies: `(B, T)`.
            mask: `(B, T)`, true on the tokens that are trained on.
        """
        summed = entropies.detach().masked_fill(~mask, 0.0).sum(dtype=torch.float64)
        self.totals += torch.stack([summed, mask.sum()])

    def take(self) -> float | None:
        """Return the mean since the last call, `None` if no token was trained on. Every rank must call this."""
        entropy, tokens = self._accelerator.reduce(self.totals.clone(), reduction="sum").tolist()
        self.totals.zero_()
        return entropy / tokens if tokens else None


class Measured:
    """The numbers of the last optimiser step.

    `numbers` has `"entropy"`, the mean entropy in nats per trained token, and the means over the step of all numbers
    that TRL and this package log, under the names of the log: `"kl"`, `"clip_ratio/high_mean"`, `"reward"`. A number
    that is logged once per rollout stays until the next rollout. `numbers` is empty until the first step is done.

    Args:
        accelerator: sums over the ranks.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.numbers: dict[str, float] = {}
        self._entropy = MeanEntropy(accelerator)
        self._logged_before: dict[str, int] | None = None  # entries by name, during a step

    def open(self, logged: Mapping[str, Sequence[float]]) -> None:
        """Remember the length of the log, at the first micro-batch of a step."""
        if self._logged_before is None:
            self._logged_before = {name: len(entries) for name, entries in logged.items()}

    def add(self, entropies: Tensor, mask: Tensor) -> None:
        """Add a micro-batch.

        Args:
            entropies: `(B, T)`.
            mask: `(B, T)`, true on the tokens that are trained on.
        """
        self._entropy.add(entropies, mask)

    def close(self, logged: Mapping[str, Sequence[float]]) -> None:
        """Update the numbers, after the last micro-batch of a step. Every rank must call this."""
        before, self._logged_before = self._logged_before or {}, None
        for name, entries in logged.items():
            new = entries[before.get(name, 0) :]
            if new and name not in IGNORED:
                self.numbers[name] = sum(new) / len(new)
        entropy = self._entropy.take()
        if entropy is not None:
            self.numbers["entropy"] = entropy

"""Numbers of all ranks at the last optimiser step, which controllers and loss terms read by name."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

# Logged numbers that are not taken over: of one rank alone, and a mean that weighs micro-batches alike.
LEFT_OUT = ("step_time", "entropy")


class MeanEntropy:
    """The mean entropy of the trained tokens of some micro-batches, on all ranks: sum_t(H_t) / tokens, in nats.

    Args:
        accelerator: sums over the ranks.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        # Of this rank: the sum of the entropies, and how many there are.
        self.totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)

    def add(self, entropies: Tensor, mask: Tensor) -> None:
        """Note a micro-batch: entropies `(B, T)` and which tokens are trained on."""
        summed = entropies.detach().masked_fill(~mask, 0.0).sum(dtype=torch.float64)
        self.totals += torch.stack([summed, mask.sum()])

    def take(self) -> float | None:
        """The mean of all micro-batches since the last call, `None` without a token. Every rank must call."""
        entropy, tokens = self._accelerator.reduce(self.totals.clone(), reduction="sum").tolist()
        self.totals.zero_()
        return entropy / tokens if tokens else None


class Measured:
    """What was measured of the last optimiser step.

    `numbers` has `"entropy"`, the mean entropy in nats per trained token, and whatever TRL and this package have
    logged since the step began, under the names of the log: `"kl"`, `"clip_ratio/high_mean"`, `"reward"`. Each is the
    mean over the step; what is logged per rollout keeps its number until the next one. It is empty before the first
    step is whole.

    Args:
        accelerator: sums over the ranks.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.numbers: dict[str, float] = {}
        self._entropy = MeanEntropy(accelerator)
        self._logged_before: dict[str, int] | None = None  # entries by name, while a step is under way

    def open(self, logged: Mapping[str, Sequence[float]]) -> None:
        """Note the length of the log at the first micro-batch of a step."""
        if self._logged_before is None:
            self._logged_before = {name: len(entries) for name, entries in logged.items()}

    def add(self, entropies: Tensor, mask: Tensor) -> None:
        """Note a micro-batch: entropies `(B, T)` and which tokens are trained on."""
        self._entropy.add(entropies, mask)

    def close(self, logged: Mapping[str, Sequence[float]]) -> None:
        """Bring the numbers up to date, after the last micro-batch of a step. Every rank must call."""
        before, self._logged_before = self._logged_before or {}, None
        for name, entries in logged.items():
            new = entries[before.get(name, 0) :]
            if new and name not in LEFT_OUT:
                self.numbers[name] = sum(new) / len(new)
        entropy = self._entropy.take()
        if entropy is not None:
            self.numbers["entropy"] = entropy

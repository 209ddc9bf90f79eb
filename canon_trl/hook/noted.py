"""Numbers that the stages of the loss note of every micro-batch, until they are logged."""

from accelerate import Accelerator
from torch import Tensor, stack


class Noted:
    """Keeps numbers on the device and brings them to the host all at once.

    Args:
        accelerator: sums over the ranks.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._parts: list[tuple[str, Tensor, Tensor]] = []
        self._numbers: list[tuple[str, Tensor]] = []

    def part(self, name: str, part: Tensor, whole: Tensor) -> None:
        """Note two 0-d numbers of this rank; the quotient of their sums over the ranks is logged."""
        self._parts.append((name, part, whole))

    def number(self, name: str, value: Tensor) -> None:
        """Note a 0-d number that is the same on all ranks."""
        self._numbers.append((name, value))

    def take(self) -> list[tuple[str, float]]:
        """What was noted since the last call, by name. Every rank must call."""
        parts, numbers = self._parts, self._numbers
        self._parts, self._numbers = [], []
        columns = []
        if parts:
            local = stack([stack([part.detach().double(), whole.double()]) for _, part, whole in parts])
            sums = self._accelerator.reduce(local, reduction="sum")
            columns += (sums[:, 0] / sums[:, 1]).unbind()
        columns += [number.detach().double() for _, number in numbers]
        names = [name for name, _, _ in parts] + [name for name, _ in numbers]
        return list(zip(names, stack(columns).tolist(), strict=True)) if columns else []

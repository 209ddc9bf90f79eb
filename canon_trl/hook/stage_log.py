"""Numbers that the stages of the loss log for every micro-batch."""

from accelerate import Accelerator
from torch import Tensor, stack


class StageLog:
    """Collects numbers on the device and moves them to the host together.

    Args:
        accelerator: sums over the ranks.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._ratios: list[tuple[str, Tensor, Tensor]] = []
        self._numbers: list[tuple[str, Tensor]] = []

    def add_ratio(self, name: str, part: Tensor, whole: Tensor) -> None:
        """Log the sum of `part` over the ranks divided by the sum of `whole`; both are 0-d."""
        self._ratios.append((name, part, whole))

    def add(self, name: str, value: Tensor) -> None:
        """Log a 0-d number that is the same on all ranks."""
        self._numbers.append((name, value))

    def take(self) -> list[tuple[str, float]]:
        """Return the numbers since the last call, by name. Every rank must call this."""
        ratios, numbers = self._ratios, self._numbers
        self._ratios, self._numbers = [], []
        columns = []
        if ratios:
            local = stack([stack([part.detach().double(), whole.double()]) for _, part, whole in ratios])
            sums = self._accelerator.reduce(local, reduction="sum")
            columns += (sums[:, 0] / sums[:, 1]).unbind()
        columns += [number.detach().double() for _, number in numbers]
        names = [name for name, _, _ in ratios] + [name for name, _ in numbers]
        return list(zip(names, stack(columns).tolist(), strict=True)) if columns else []

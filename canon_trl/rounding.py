"""The rounding error of floating-point sums."""

import torch
from torch import Tensor


def rounding_error(scale: Tensor) -> Tensor:
    """Return the largest difference between two sums of this size that counts as rounding: 8 units in the last place.

    0.7 + 0.2 + 0.1 and 1 differ in float32 and in float64, so comparisons of such sums need a tolerance.
    """
    return 8 * torch.finfo(scale.dtype).eps * scale.abs()

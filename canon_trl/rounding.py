"""What a sum in floating point can be off by."""

import torch
from torch import Tensor


def rounding_error(scale: Tensor) -> Tensor:
    """How far two sums of numbers of this size may lie apart although they mean the same: 8 units in the last place.

    0.7 + 0.2 + 0.1 and 1 differ in float32 and in float64; a comparison of such sums allows for it.
    """
    return 8 * torch.finfo(scale.dtype).eps * scale.abs()

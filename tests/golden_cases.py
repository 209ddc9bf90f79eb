"""Numbers from the reference implementations; see `golden/README.md`."""

import json
from pathlib import Path

import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


def cases(family: str, **wanted: object) -> list:
    """Return the cases of a family whose inputs have the given values."""
    found = json.loads((GOLDEN / f"{family}.json").read_text())["cases"]
    return [case for case in found if all(case["inputs"].get(key) == value for key, value in wanted.items())]


def tensor(values: list, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def assert_golden(got: Tensor, want: list) -> None:
    """Compare with the tolerance stated for the golden numbers at the precision of `got`."""
    atol, rtol = (1e-8, 1e-7) if got.dtype == torch.float64 else (1e-5, 1e-5)
    torch.testing.assert_close(got, torch.tensor(want, dtype=got.dtype), atol=atol, rtol=rtol)

"""Micro-batches of whole groups, for losses that compare the responses to a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from canon_trl.hook.token_inputs import TokenInputs


class WholeGroups(TokenInputs):
    """Deals the responses of a rollout to micro-batches group by group, where the loss asks for that."""

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        whole = self._stages.whole
        if whole is None or not whole.whole_groups or self._buffered_inputs is before or not self.model.training:
            return inputs
        self._buffered_inputs = dealt_by_group(self._buffered_inputs, self.num_generations)
        return self._buffered_inputs[self._position]


def dealt_by_group(micro_batches: Sequence[Mapping[str, Any]], group_size: int) -> list[dict[str, Any]]:
    """The micro-batches of a rollout, dealt anew.

    Groups follow one another as TRL's shuffle has brought up the first of their responses; within a group the
    responses stand in sampling order.
    """
    batches = [split_pixel_values_by_grid(dict(batch)) for batch in micro_batches]
    together = {name: joined([batch[name] for batch in batches]) for name in batches[0]}
    response = together["response"]
    _, group = torch.unique(response // group_size, return_inverse=True)
    place = torch.arange(len(response), device=response.device)
    first = torch.full_like(place, len(response)).scatter_reduce(0, group, place, "amin")[group]
    rows = torch.argsort(first * (int(response.max()) + 1) + response)
    dealt = {name: picked(values, rows) for name, values in together.items()}
    return [unsplit_pixel_values_by_grid(batch) for batch in split_tensor_dict(dealt, len(batches))]


def joined(parts: list[Any]) -> Any:
    """One entry of all micro-batches: rows one after the other; what is not of single rows is the same in all."""
    if parts[0] is None or (isinstance(parts[0], Tensor) and parts[0].dim() == 0):
        return parts[0]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [row for part in parts for row in part]


def picked(values: Any, rows: Tensor) -> Any:
    if values is None or (isinstance(values, Tensor) and values.dim() == 0):
        return values
    return values[rows] if isinstance(values, Tensor) else [values[row] for row in rows.tolist()]

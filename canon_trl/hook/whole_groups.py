"""Deal whole groups to micro-batches, for losses that compare the responses to a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from canon_trl.hook.token_inputs import TokenInputs


class WholeGroups(TokenInputs):
    """Deals the responses of a rollout to micro-batches group by group, if the loss requires it."""

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        whole = self._stages.whole
        if whole is None or not whole.whole_groups or self._buffered_inputs is before or not self.model.training:
            return inputs
        self._buffered_inputs = deal_by_group(self._buffered_inputs, self.num_generations)
        return self._buffered_inputs[self._position]


def deal_by_group(micro_batches: Sequence[Mapping[str, Any]], group_size: int) -> list[dict[str, Any]]:
    """Deal the rows of a rollout to micro-batches again, group by group.

    The groups are in the order in which TRL's shuffle put their first responses; the responses of a group are in
    sampling order.
    """
    batches = [split_pixel_values_by_grid(dict(batch)) for batch in micro_batches]
    together = {name: concatenated([batch[name] for batch in batches]) for name in batches[0]}
    response = together["response"]
    _, group = torch.unique(response // group_size, return_inverse=True)
    position = torch.arange(len(response), device=response.device)
    first = torch.full_like(position, len(response)).scatter_reduce(0, group, position, "amin")[group]
    rows = torch.argsort(first * (int(response.max()) + 1) + response)
    dealt = {name: select_rows(values, rows) for name, values in together.items()}
    return [unsplit_pixel_values_by_grid(batch) for batch in split_tensor_dict(dealt, len(batches))]


def concatenated(parts: list[Any]) -> Any:
    """Join one entry of all micro-batches: concatenate the rows, or return the value that they share."""
    if parts[0] is None or (isinstance(parts[0], Tensor) and parts[0].dim() == 0):
        return parts[0]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [row for part in parts for row in part]


def select_rows(values: Any, rows: Tensor) -> Any:
    if values is None or (isinstance(values, Tensor) and values.dim() == 0):
        return values
    return values[rows] if isinstance(values, Tensor) else [values[row] for row in rows.tolist()]

"""What a rollout is made of while TRL makes it, and how it is saved."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from canon_trl.hook.generation_recorder import GenerationRecorder
from canon_trl.sampling.group_collector import SampledBatch

# What `_generate` returns, in order.
GENERATED = (
    "prompt_ids",
    "completion_ids",
    "tool_mask",
    "completions",
    "sampling_log_probs",
    "extra_fields",
    "images",
    "tool_images",
)


class RewardsAreKnown(Exception):
    """Ends a rollout of which nothing but the responses and their rewards is wanted."""


@dataclass
class ScoringPass:
    """What one scoring pass over the rollout gave, `(B, T)` each."""

    for_trl: Tensor
    log_probs: Tensor
    entropies: Tensor


@dataclass
class RolloutParts:
    """What passes by while TRL makes a rollout, of this rank's rows unless said."""

    sampling_only: bool = False  # whether to go no further than the rewards
    replayed: SampledBatch | None = None  # responses that are there already
    generated: dict[str, list | None] = field(default_factory=dict)
    recorded: list[dict[str, Tensor]] = field(default_factory=list)
    completion_ids: list[list[int]] | None = None
    tool_mask: list[list[int]] | None = None
    rewards_per_func: Tensor = field(init=False)  # of all ranks, once they are known
    drawn: Tensor = field(init=False)  # the same, with those of responses that dynamic sampling replaced
    metric_inputs: dict[str, Any] = field(default_factory=dict)
    token_values: dict[str, Tensor] = field(default_factory=dict)  # (B, T) each
    passes: list[ScoringPass] = field(default_factory=list)
    recorder: GenerationRecorder | None = None

    def written_mask(self, width: int, device: torch.device) -> Tensor:
        """True on every token of the completion, `(B, width)`, also where training masks it as truncated."""
        assert self.completion_ids is not None
        lengths = torch.tensor([len(ids) for ids in self.completion_ids], device=device)
        return torch.arange(width, device=device) < lengths.unsqueeze(1)

    def model_mask(self, width: int, device: torch.device) -> Tensor:
        """True on the tokens that the model wrote, `(B, width)`: without those of tools and environments."""
        written = self.written_mask(width, device)
        if self.tool_mask is None:
            return written
        return written & padded([torch.tensor(row, dtype=torch.bool) for row in self.tool_mask], width, device)

    def padded_records(self, width: int, device: torch.device) -> dict[str, Tensor]:
        """What was recorded of the tokens while they were sampled, by name, `(B, width)` each."""
        return {name: padded([row[name] for row in self.recorded], width, device) for name in self.recorded[0]}


def padded(rows: list[Tensor], width: int, device: torch.device) -> Tensor:
    """Rows of different lengths as one tensor, `(B, width)`, with zeros after each; brought to the device at once."""
    together = pad_sequence(rows, batch_first=True).to(device)
    return nn.functional.pad(together, (0, width - together.shape[1]))


def plain(value: Any) -> Any:
    """The value in Python's own types, whatever a reward function has put into the completions table."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # numpy's numbers and arrays, tensors
        return value.tolist()
    return value if value is None or isinstance(value, (str, int, float)) else str(value)

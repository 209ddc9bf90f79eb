"""Run the generation rounds of dynamic sampling on all ranks until the batch is full."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from canon_trl.guards.rollout_checks import in_range, snapped
from canon_trl.rollout import weighted_reward
from canon_trl.sampling import DynamicSampling, PromptStream, group_verdicts

logger = logging.getLogger(__name__)


@dataclass
class SampledResponse:
    """One response, with everything computed for it before its rewards."""

    row: dict[str, Any]  # the row of the dataset
    generated: dict[str, Any]  # what TRL's generation returned for it
    recorded: dict[str, Tensor] = field(default_factory=dict)  # values per token from generation, `(T,)` each
    columns: dict[str, Any] = field(default_factory=dict)  # what reward functions logged to the completions table


@dataclass
class SampledBatch:
    """The responses of this rank, and the rewards of all ranks' responses, `(N, F)` in rank-major order."""

    responses: list[SampledResponse]
    rewards_per_func: Tensor
    trained: Tensor | None = None  # `(N,)` bool, false in the places of missing groups
    drawn: Tensor = field(init=False)  # `(M, F)`, rewards of all M responses sampled for the batch


class GroupCollector:
    """Samples groups in rounds and assembles the batch from those that it keeps, in sampling order.

    All ranks see all rewards and make the same decisions. A response is sent only if it moves to another rank.

    Args:
        options: see [`~canon_trl.sampling.DynamicSampling`].
        accelerator: gathers across ranks.
        prompts: source of fresh prompts, the same on every rank.
        group_size: responses per prompt.
        accuracy_index: index of the reward function that measures accuracy.
    """

    def __init__(
        self,
        options: DynamicSampling,
        accelerator: Accelerator,
        prompts: PromptStream,
        *,
        group_size: int,
        accuracy_index: int,
    ) -> None:
        self.prompts = prompts
        self.statistics: dict[str, float] = {}
        self.options = options
        self._accelerator = accelerator
        self._group_size = group_size
        self._accuracy_index = accuracy_index

    def collect(
        self,
        rows: list[dict[str, Any]],
        sample: Callable[[list[dict[str, Any]]], SampledBatch],
        *,
        reward_weights: Tensor,
    ) -> SampledBatch:
        """Return a batch with as many responses per rank as there are `rows`.

        Args:
            rows: this rank's rows for the first round, one per response.
            sample: generates and rewards one response per row; all ranks call it together.
            reward_weights: the current weights, `(F,)`.

        Raises:
            ValueError: there is a band, and an accuracy is outside [0, 1].
            RuntimeError: the batch is not full after the last round, and `exhausted` is `"error"`.
        """
        wanted = len(rows) * self._accelerator.num_processes // self._group_size
        columns = set(rows[0])  # remove_unused_columns may have dropped columns of the dataset
        rounds: list[SampledBatch] = []
        kept: list[tuple[int, int]] = []  # (round, group)
        rejected: list[tuple[int, int]] = []
        drawn = no_spread = 0
        accuracies = []
        while len(kept) < wanted and len(rounds) < self.options.max_rounds:
            if rounds:
                fresh = self._fresh_rows(wanted - len(kept), wanted, kept=len(kept), drawn=drawn)
                rows = [{name: value for name, value in row.items() if name in columns} for row in fresh]
            batch = sample(rows)
            rewards, accuracy = self._rewards(batch.rewards_per_func, reward_weights)
            verdicts = group_verdicts(rewards, accuracy, lower=self.options.lower, upper=self.options.upper)
            inside = in_range(accuracy, "[0, 1]").all(dim=1)
            spread, in_band, bounded = torch.stack([*verdicts, inside]).tolist()
            if (self.options.lower, self.options.upper) != (0, 1) and not all(bounded):
                outside = accuracy[bounded.index(False)].tolist()
                raise ValueError(
                    f"dynamic_sampling_kwargs sets a band of accuracy, but the accuracy reward gave {outside} for a "
                    "group; set accuracy_reward to a reward function in [0, 1]"
                )
            for group, keep in enumerate(map(all, zip(spread, in_band, strict=True))):
                (kept if keep else rejected).append((len(rounds), group))
            drawn += len(spread)
            no_spread += spread.count(False)
            accuracies.append(accuracy)
            rounds.append(batch)
        self.statistics = {
            "rounds": len(rounds),
            "prompts_drawn": drawn,
            "prompts_kept": min(len(kept), wanted),
            "prompts_surplus": max(len(kept) - wanted, 0),
            "prompts_no_spread": no_spread,
            "prompts_outside_band": len(rejected) - no_spread,
            "accuracy_drawn": torch.cat(accuracies).nanmean().item(),
        }
        batch = self._assemble(rounds, kept[:wanted], rejected, wanted)
        batch.drawn = torch.cat([sampled.rewards_per_func for sampled in rounds])
        return batch

    def _rewards(self, rewards_per_func: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted rewards and the accuracies, `(P, G)` each."""
        weighted = weighted_reward(rewards_per_func, weights)
        accuracy = snapped(rewards_per_func[:, self._accuracy_index], "[0, 1]")
        return weighted.view(-1, self._group_size), accuracy.reshape(-1, self._group_size)

    def _fresh_rows(self, missing: int, at_most: int, *, kept: int, drawn: int) -> list[dict[str, Any]]:
        """Return this rank's rows of enough fresh prompts to find the missing groups; every rank gets equally many."""
        ranks, size = self._accelerator.num_processes, self._group_size
        unit = ranks // math.gcd(ranks, size)  # a multiple of this many groups divides evenly over the ranks
        count = min(-(-missing * drawn // kept), at_most) if kept else at_most
        count = -(-count // unit) * unit
        rows = [row for row in self.prompts.take(count) for _ in range(size)]
        local = len(rows) // ranks
        first = self._accelerator.process_index * local
        return [dict(row) for row in rows[first : first + local]]

    def _assemble(
        self, rounds: list[SampledBatch], kept: list[tuple[int, int]], rejected: list[tuple[int, int]], wanted: int
    ) -> SampledBatch:
        missing = wanted - len(kept)
        if missing:
            message = (
                f"after {len(rounds)} generation rounds, {len(kept)} of {wanted} groups are usable. Use prompts whose "
                "rewards differ more often within a group, more responses per prompt, or a wider band"
            )
            if self.options.exhausted == "error":
                raise RuntimeError(f"dynamic sampling: {message}")
            logger.warning("dynamic sampling: %s", message)
        elif len(rounds) == 1 and len(kept) == wanted:
            return rounds[0]
        size, ranks, rank = self._group_size, self._accelerator.num_processes, self._accelerator.process_index
        places = [
            (round_, group * size + response)
            for round_, group in [*kept, *rejected[:missing]]
            for response in range(size)
        ]
        local = len(places) // ranks
        mine: dict[int, SampledResponse] = {}
        sent: list[tuple[int, SampledResponse]] = []
        for place, (round_, row) in enumerate(places):
            owner, index = divmod(row, len(rounds[round_].responses))
            if owner == rank:
                response = rounds[round_].responses[index]
                if place // local == rank:
                    mine[place] = response
                else:  # pickling a slice sends the whole tensor
                    recorded = {name: values.cpu().clone() for name, values in response.recorded.items()}
                    sent.append((place, replace(response, recorded=recorded)))
        mine |= {place: response for place, response in gather_object(sent) if place // local == rank}
        rewards = torch.stack([rounds[round_].rewards_per_func[row] for round_, row in places])
        trained = None
        if missing and self.options.exhausted == "shrink":
            trained = torch.arange(len(places), device=rewards.device) < len(kept) * size
            rewards = rewards.masked_fill(~trained.unsqueeze(1), torch.nan)
        return SampledBatch([mine[place] for place in sorted(mine)], rewards, trained)

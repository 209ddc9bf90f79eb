"""Dynamic sampling at work: generation rounds over all ranks until the batch is full."""

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
    """One response, with all that was made of it up to its rewards."""

    row: dict[str, Any]  # of the dataset
    generated: dict[str, Any]  # what the sampler gave
    recorded: dict[str, Tensor] = field(default_factory=dict)  # token values noted while generating, `(T,)` each
    columns: dict[str, Any] = field(default_factory=dict)  # what reward functions have put into the completions table


@dataclass
class SampledBatch:
    """Responses of this rank, and the rewards of those of all ranks, `(N, F)` in rank-major order."""

    responses: list[SampledResponse]
    rewards_per_func: Tensor
    trained: Tensor | None = None  # `(N,)` bool, false on places that no group was found for
    drawn: Tensor = field(init=False)  # `(M, F)`, the rewards of all that was sampled until the batch was full


class GroupCollector:
    """Samples groups in rounds and puts the batch together from those that are kept.

    Groups are kept in the order in which they were sampled. All ranks see all rewards, so they decide alike; what is
    sent is only the responses that end up on another rank than the one they were sampled on.

    Args:
        options: see [`~canon_trl.sampling.DynamicSampling`].
        accelerator: gathers over the ranks.
        prompts: where fresh prompts come from, the same on every rank.
        group_size: responses to a prompt.
        accuracy_index: which of the F reward functions measures accuracy.
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
        """A batch of as many responses a rank as there are `rows`.

        Args:
            rows: those of this rank for the first round, one a response.
            sample: generates and scores a response to each row; called on all ranks alike.
            reward_weights: `(F,)`, those in force now.

        Raises:
            ValueError: there is a band, and an accuracy lies outside [0, 1].
            RuntimeError: the rounds ran out and `exhausted` is `"error"`.
        """
        wanted = len(rows) * self._accelerator.num_processes // self._group_size
        columns = set(rows[0])  # which remove_unused_columns may have left fewer of than the dataset has
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
                    f"dynamic_sampling_kwargs has a band of accuracy, but the reward that measures it gave {outside} "
                    "for a group; name a reward function in [0, 1] as accuracy_reward"
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
        batch = self._put_together(rounds, kept[:wanted], rejected, wanted)
        batch.drawn = torch.cat([sampled.rewards_per_func for sampled in rounds])
        return batch

    def _rewards(self, rewards_per_func: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted reward and the accuracy, `(P, G)` each."""
        weighted = weighted_reward(rewards_per_func, weights)
        accuracy = snapped(rewards_per_func[:, self._accuracy_index], "[0, 1]")
        return weighted.view(-1, self._group_size), accuracy.reshape(-1, self._group_size)

    def _fresh_rows(self, missing: int, at_most: int, *, kept: int, drawn: int) -> list[dict[str, Any]]:
        """Rows of this rank for enough fresh prompts to find the missing groups; as many on every rank."""
        ranks, size = self._accelerator.num_processes, self._group_size
        unit = ranks // math.gcd(ranks, size)  # so many groups are divided evenly
        count = min(-(-missing * drawn // kept), at_most) if kept else at_most
        count = -(-count // unit) * unit
        rows = [row for row in self.prompts.take(count) for _ in range(size)]
        local = len(rows) // ranks
        first = self._accelerator.process_index * local
        return [dict(row) for row in rows[first : first + local]]

    def _put_together(
        self, rounds: list[SampledBatch], kept: list[tuple[int, int]], rejected: list[tuple[int, int]], wanted: int
    ) -> SampledBatch:
        missing = wanted - len(kept)
        if missing:
            message = (
                f"after {len(rounds)} generation rounds {len(kept)} of {wanted} groups are worth training on; rewards "
                "that seldom differ within a group call for other prompts, more responses a prompt or a wider band"
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
                else:  # a slice would be sent with the whole tensor that it is one of
                    recorded = {name: values.cpu().clone() for name, values in response.recorded.items()}
                    sent.append((place, replace(response, recorded=recorded)))
        mine |= {place: response for place, response in gather_object(sent) if place // local == rank}
        rewards = torch.stack([rounds[round_].rewards_per_func[row] for round_, row in places])
        trained = None
        if missing and self.options.exhausted == "shrink":
            trained = torch.arange(len(places), device=rewards.device) < len(kept) * size
            rewards = rewards.masked_fill(~trained.unsqueeze(1), torch.nan)
        return SampledBatch([mine[place] for place in sorted(mine)], rewards, trained)

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


class GroupCollector:
    """Samples groups in rounds and puts the batch together from those that are kept.

    Groups are kept in the order in which they were sampled. All ranks see all rewards, so they decide alike; what is
    sent is only the responses that end up on another rank than the one they were sampled on.

    Args:
        options: see [`~canon_trl.sampling.DynamicSampling`].
        accelerator: gathers over the ranks.
        prompts: where fresh prompts come from, the same on every rank.
        group_size: responses to a prompt.
        reward_weights: `(F,)`.
        accuracy_index: which of the F reward functions measures accuracy.
    """

    def __init__(
        self,
        options: DynamicSampling,
        accelerator: Accelerator,
        prompts: PromptStream,
        *,
        group_size: int,
        reward_weights: Tensor,
        accuracy_index: int,
    ) -> None:
        self.prompts = prompts
        self.statistics: dict[str, float] = {}
        self.options = options
        self._accelerator = accelerator
        self._group_size = group_size
        self._reward_weights = reward_weights
        self._accuracy_index = accuracy_index

    def collect(
        self, rows: list[dict[str, Any]], sample: Callable[[list[dict[str, Any]]], SampledBatch]
    ) -> SampledBatch:
        """A batch of as many responses a rank as there are `rows`.

        Args:
            rows: those of this rank for the first round, one a response.
            sample: generates and scores a response to each row; called on all ranks alike.

        Raises:
            ValueError: there is a band, and an accuracy lies outside [0, 1].
            RuntimeError: the rounds ran out and `exhausted` is `"error"`.
        """
        wanted = len(rows) * self._accelerator.num_processes // self._group_size
        rounds: list[SampledBatch] = []
        kept: list[tuple[int, int]] = []  # (round, group)
        rejected: list[tuple[int, int]] = []
        drawn = no_spread = 0
        accuracies = []
        while len(kept) < wanted and len(rounds) < self.options.max_rounds:
            if rounds:
                rows = self._fresh_rows(wanted - len(kept), wanted, share=len(kept) / drawn)
            batch = sample(rows)
            rewards, accuracy = self._rewards(batch.rewards_per_func)
            verdicts = group_verdicts(rewards, accuracy, lower=self.options.lower, upper=self.options.upper)
            inside = ((accuracy >= 0) & (accuracy <= 1) | accuracy.isnan()).all(dim=1)
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
        return self._put_together(rounds, kept[:wanted], rejected, wanted)

    def _rewards(self, rewards_per_func: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted reward and the accuracy, `(P, G)` each."""
        weighted = weighted_reward(rewards_per_func, self._reward_weights)
        accuracy = rewards_per_func[:, self._accuracy_index]
        return weighted.view(-1, self._group_size), accuracy.reshape(-1, self._group_size)

    def _fresh_rows(self, missing: int, at_most: int, *, share: float) -> list[dict[str, Any]]:
        """Rows of this rank for enough fresh prompts to find the missing groups; as many on every rank."""
        ranks, size = self._accelerator.num_processes, self._group_size
        unit = ranks // math.gcd(ranks, size)  # so many groups are divided evenly
        count = at_most if share == 0 else min(math.ceil(missing / share), at_most)
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


def places_over_trained(trained: list[Tensor], loss_type: str, accelerator: Accelerator) -> Tensor | float:
    """The factor by which the loss's divisor, a count of places, exceeds that of the places trained on, 0-d.

    Args:
        trained: which responses are, `(B,)` bool a micro-batch of the optimiser step.
        loss_type: TRL's.
        accelerator: gathers over the ranks.
    """
    if loss_type in ("dapo", "cispo", "vespo"):
        return 1.0  # divided by the tokens that are trained on
    places = torch.stack(trained)
    if loss_type == "bnpo":  # a mean over the tokens of each micro-batch
        places = places.any(dim=1)
    everyones = accelerator.gather(places.float().mean().unsqueeze(0)).mean()
    return torch.where(everyones > 0, 1 / everyones, 0.0)

"""What is logged about a rollout and about the loss."""

import math

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

from canon_trl.advantages import dr_grpo_advantage
from canon_trl.advantages.groups import has_spread
from canon_trl.guards.collapse import EXPECTED
from canon_trl.rollout import Rollout


class Logs(GRPOTrainer):
    """Fills TRL's metrics and its completions table."""

    def rollout_statistics(self, rollout: Rollout, advantages: Tensor) -> dict[str, Tensor | float]:
        """Numbers to log of every rollout, averaged over a logging step; override to add more.

        Args:
            rollout: the rollout, the same on every rank.
            advantages: `(P, G)`, the advantages used; of a token-level estimator their mean over each response.

        Returns:
            By name, as 0-d tensors or floats; NaN where a number is undefined. The same names at every rollout.
        """
        centred = dr_grpo_advantage(rollout.rewards)
        spread, scored = has_spread(rollout.rewards, rollout.valid), rollout.valid.any(dim=1)
        relative = advantages.abs().sum() / centred.abs().sum()
        return {
            "advantage/relative_to_dr_grpo": relative.masked_fill(~spread.any(), torch.nan),
            "groups/frac_no_spread": 1 - spread.sum() / scored.sum(),  # of the groups with a scored response
        }

    def _reward_statistics(self, rewards: Tensor) -> dict[str, Tensor]:
        """In place of TRL's own, for which a function of weight 0 makes a response a scored one."""
        found = {"reward": rewards.nanmean(), "reward_std": nanstd(rewards.flatten())}
        if rewards.shape[1] > 1:
            spread = nanstd(rewards, dim=1)
            found["frac_reward_zero_std"] = torch.isclose(spread, torch.zeros_like(spread)).float().mean()
        return found

    def completion_columns(self, rollout: Rollout) -> dict[str, Tensor]:
        """Columns of the completions table in addition to TRL's own, `(P, G)` each; override to add more."""
        return {f"metric/{name}": metric for name, metric in rollout.metrics.items()}

    def _log_rollout(self, rollout: Rollout, advantages: Tensor, drawn: Tensor) -> None:
        """Log a rollout.

        Args:
            rollout: the rollout.
            advantages: `(P, G)`, those used.
            drawn: `(M, F)`, the rewards of all responses that were sampled for it.
        """
        mode = "train" if self.model.training else "eval"
        own = self._reward_statistics(rollout.rewards)
        statistics = self.rollout_statistics(rollout, advantages) | own
        if mode == "train":
            for name, value in self._sampled.statistics.items():
                self._metrics[mode][f"dynamic_sampling/{name}"].append(value)
        values = torch.stack([torch.as_tensor(v, device=advantages.device).float() for v in statistics.values()])
        bounds = [drawn.nan_to_num(nan=math.inf).amin(dim=0), drawn.nan_to_num(nan=-math.inf).amax(dim=0)]
        watched = self._watched(rollout)
        parts = [advantages.isfinite().all().float().unsqueeze(0), *bounds, *watched.values(), values]
        finite, *numbers = torch.cat([part.float() for part in parts]).tolist()  # one wait for all of them
        functions = len(self.reward_func_names)
        lowest, highest, numbers = numbers[:functions], numbers[functions : 2 * functions], numbers[2 * functions :]
        means, numbers = dict(zip(watched, numbers, strict=False)), numbers[len(watched) :]
        if mode == "train":
            for name, share in self._collapse.compare(means).items():
                self._metrics[mode][f"policy_reward/{name}_of_first"].append(share)
            for name, count in self._constant_rewards.count(lowest, highest).items():
                self._metrics[mode][f"rewards/{name}/constant_rollouts"].append(count)
        if not finite:
            index = int((~advantages.flatten().isfinite()).nonzero()[0])
            raise ValueError(
                f"the advantage estimator returned {advantages.flatten()[index].item()} for completion {index}; "
                "advantages must be finite"
            )
        for name, value in zip(statistics, numbers, strict=True):
            if name in own:
                self._metrics[mode][name].pop()
            self._metrics[mode][name].append(value)

        # TRL has tabulated its own advantages; put those that are used in their place.
        table = self._logs["advantages"]
        for _ in range(min(advantages.numel(), len(table))):
            table.pop()
        table.extend(advantages.flatten().tolist())
        for column, entries in self.completion_columns(rollout).items():
            self._logs["extra"][column].extend(entries.flatten().tolist())

    def _watched(self, rollout: Rollout) -> dict[str, Tensor]:
        """What tells that a policy collapses under its own rewards: means over the responses, `(1,)` each, by name."""
        if not self._policy_rewards:
            return {}
        means = {"length": rollout.lengths.float().mean()}
        means |= {name: metric.mean() for name, metric in rollout.metrics.items() if name in EXPECTED}
        return {name: mean.unsqueeze(0) for name, mean in means.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._collect_statistics()
        super().log(logs, start_time)

    def _collect_statistics(self) -> None:
        """Bring what the stages of the loss have noted to the host, all at once. Every rank must call."""
        for name, value in self._noted.take():
            self._metrics["train"][name].append(value)

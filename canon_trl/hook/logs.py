"""Log numbers of the rollout and of the loss."""

import math

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

from canon_trl.advantages import dr_grpo_advantage
from canon_trl.advantages.groups import has_spread
from canon_trl.guards.collapse import EXPECTED_SHARES
from canon_trl.metrics import METRICS, entropy_by_correctness
from canon_trl.rollout import Rollout


class Logs(GRPOTrainer):
    """Fills TRL's metrics and its completions table."""

    _declared_metrics: tuple[str, ...] = ()  # those of the estimator and of the trainer, without the random one

    def rollout_statistics(self, rollout: Rollout, advantages: Tensor) -> dict[str, Tensor | float]:
        """Return numbers to log for every rollout, averaged between log entries; override it to add more.

        Args:
            rollout: the rollout, the same on every rank.
            advantages: `(P, G)`, the advantages used; with a token-level estimator, their mean over each response.

        Returns:
            0-d tensors or floats by name; NaN if a number is undefined. The names must be the same at every rollout.
        """
        centred = dr_grpo_advantage(rollout.rewards)
        spread, scored = has_spread(rollout.rewards, rollout.valid), rollout.valid.any(dim=1)
        relative = advantages.abs().sum() / centred.abs().sum()
        numbers: dict[str, Tensor | float] = {
            "advantage/relative_to_dr_grpo": relative.masked_fill(~spread.any(), torch.nan),
            "groups/frac_no_spread": 1 - spread.sum() / scored.sum(),  # among the groups with a scored response
        }
        means = {f"metric/{name}/mean": rollout.metrics[name].mean() for name in self._declared_metrics}
        return numbers | means | self._entropies_by_correctness(rollout)

    def _entropies_by_correctness(self, rollout: Rollout) -> dict[str, Tensor | float]:
        """The entropies of right and wrong responses, if they are known and something measures the accuracy."""
        labelled = len(self.reward_func_names) > len(self._policy_rewards)
        if not labelled or self._response_metrics.get("entropy") is not METRICS["entropy"]:
            return {}
        accuracy = rollout.rewards_per_func[..., self._accuracy_index]
        means = entropy_by_correctness(rollout.metrics["entropy"], rollout.lengths, accuracy)
        return {f"entropy/{name}": mean for name, mean in means.items()}

    def _reward_statistics(self, rewards: Tensor) -> dict[str, Tensor]:
        """Replaces TRL's numbers, which count a response as scored even if only a function of weight 0 scored it."""
        found = {"reward": rewards.nanmean(), "reward_std": nanstd(rewards.flatten())}
        if rewards.shape[1] > 1:
            spread = nanstd(rewards, dim=1)
            found["frac_reward_zero_std"] = torch.isclose(spread, torch.zeros_like(spread)).float().mean()
        return found

    def completion_columns(self, rollout: Rollout) -> dict[str, Tensor]:
        """Return columns to add to TRL's completions table, `(P, G)` each; override it to add more."""
        return {f"metric/{name}": metric for name, metric in rollout.metrics.items()}

    def _log_rollout(self, rollout: Rollout, advantages: Tensor, drawn: Tensor) -> None:
        """Log a rollout.

        Args:
            rollout: the rollout.
            advantages: `(P, G)`, the advantages used.
            drawn: `(M, F)`, the rewards of all responses that were sampled for the rollout.
        """
        mode = "train" if self.model.training else "eval"
        own = self._reward_statistics(rollout.rewards)
        statistics = self.rollout_statistics(rollout, advantages) | own
        if mode == "train":
            for name, value in self._batch_source.statistics.items():
                self._metrics[mode][f"dynamic_sampling/{name}"].append(value)
        values = torch.stack([torch.as_tensor(v, device=advantages.device).float() for v in statistics.values()])
        bounds = [drawn.nan_to_num(nan=math.inf).amin(dim=0), drawn.nan_to_num(nan=-math.inf).amax(dim=0)]
        watched = self._collapse_means(rollout)
        agreement = self._take_agreement()
        shares = [share.unsqueeze(0) for share in agreement.values()]
        parts = [advantages.isfinite().all().float().unsqueeze(0), *bounds, *watched.values(), *shares, values]
        finite, *numbers = torch.cat([part.float() for part in parts]).tolist()  # one transfer for all
        functions = len(self.reward_func_names)
        lowest, highest, numbers = numbers[:functions], numbers[functions : 2 * functions], numbers[2 * functions :]
        means, numbers = dict(zip(watched, numbers, strict=False)), numbers[len(watched) :]
        agreed, numbers = dict(zip(agreement, numbers, strict=False)), numbers[len(agreement) :]
        if mode == "train":
            for name, share in self._collapse.compare(means).items():
                self._metrics[mode][f"policy_reward/{name}_of_first"].append(share)
            for name, share in agreed.items():
                self._metrics[mode][f"policy_reward/{name}"].append(share)
            self._collapse.watch_answers(agreed)
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

        # Replace TRL's own advantages in the table by those used.
        table = self._logs["advantages"]
        for _ in range(min(advantages.numel(), len(table))):
            table.pop()
        table.extend(advantages.flatten().tolist())
        for column, entries in self.completion_columns(rollout).items():
            self._logs["extra"][column].extend(entries.flatten().tolist())

    def _collapse_means(self, rollout: Rollout) -> dict[str, Tensor]:
        """Means over responses that show whether a policy collapses under its own rewards, `(1,)` each, by name."""
        if not self._policy_rewards:
            return {}
        means = {"length": rollout.lengths.float().mean()}
        means |= {name: metric.mean() for name, metric in rollout.metrics.items() if name in EXPECTED_SHARES}
        return {name: mean.unsqueeze(0) for name, mean in means.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._collect_statistics()
        super().log(logs, start_time)

    def _collect_statistics(self) -> None:
        """Move what the stages of the loss have logged into TRL's metrics. Every rank must call this."""
        for name, value in self._stage_log.take():
            self._metrics["train"][name].append(value)

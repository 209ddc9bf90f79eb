"""Make a `Rollout` from the rewards and advantages from the `Rollout`, while TRL processes the responses."""

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from canon_trl.config.loss_stages import reward_ranges
from canon_trl.guards.failures import SharedFailures
from canon_trl.guards.rollout_checks import check_numbers, checked_advantages, snapped
from canon_trl.hook.resampling import Resampling
from canon_trl.hook.rollout_parts import RolloutPhase
from canon_trl.metrics import ResponseMetric, measure, random_metric
from canon_trl.rollout import GATHERED_ON_REQUEST, ResponseMetrics, Rollout, TokenValues, weighted_reward
from canon_trl.sampling.prompt_checks import fault_of_rows


class Rollouts(Resampling):
    """Replaces the step from rewards to advantages; the wrappers record TRL's values and pass them on unchanged."""

    @cached_property
    def _failures(self) -> SharedFailures:
        return SharedFailures()

    _response_metrics: Mapping[str, ResponseMetric | None] = {}
    _needs_accuracy = False
    _accuracy_index = 0
    _rollout_observers: tuple[Callable[[Rollout, Tensor], object], ...] = ()

    def on_rollout(self, observe: Callable[[Rollout, Tensor], object]) -> None:
        """Call a function with every rollout of training and evaluation, and the advantages used, `(P, G)`."""
        self._rollout_observers += (observe,)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._check_weights()
        self._weigh_policy_rewards()
        inputs, phase = self._begin_rollout(inputs)
        with self._in_phase(phase):
            output = super()._generate_and_score_completions(inputs)
            rollout = self._make_rollout(output, phase)
        trained = self._trained_responses(rollout, phase.trained)
        if trained is not None:
            self._mask_out(output, trained)
            output["trained"] = self._local_rows(trained)
        if self._stages.whole is not None:  # it may also learn from a response whose advantage is 0
            self._mask_out(output, rollout.valid.flatten())
        advantages = self._estimate_advantages(rollout)
        width = output["completion_ids"].shape[1]
        local = self._local_rows(advantages.flatten(0, 1))
        output["advantages"] = local[:, :width] if local.dim() == 2 else local
        if advantages.dim() == 3:  # logged as the mean over each response
            mask = phase.model_mask(width, local.device)
            means = output["advantages"].masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            advantages = self.accelerator.gather(means).view_as(rollout.rewards)
        self._log_rollout(rollout, advantages, phase.drawn)
        for observe in self._rollout_observers:
            observe(rollout, advantages)
        output |= self._stage_inputs(output, rollout, phase)
        return output

    def _check_rows(self, rows: list[dict[str, Any]]) -> None:
        """Check the prompts, since those of a stream are unchecked so far. An error on one rank is raised on all."""
        with self._failures.shared():
            if error := fault_of_rows(rows, "train_dataset" if self.model.training else "eval_dataset"):
                raise error

    def _local_rows(self, gathered: Tensor) -> Tensor:
        """This rank's rows of a tensor with all responses, `(N, ...)`."""
        rows = len(gathered) // self.accelerator.num_processes
        return gathered[self.accelerator.process_index * rows :][:rows]

    def _trained_responses(self, rollout: Rollout, trained: Tensor | None) -> Tensor | None:
        """Return which responses of all ranks are trained on, `(N,)` bool; `None` for all.

        Args:
            rollout: the rollout.
            trained: the same before the stages choose.
        """
        for method in self._stages.choosing if self.model.training else ():
            chosen = method(rollout).expand(rollout.rewards.shape).flatten()
            trained = chosen if trained is None else trained & chosen
        return trained

    def _mask_out(self, output: dict[str, Any], trained: Tensor) -> None:
        """Mask the tokens of all responses but the `trained` ones, so that the loss ignores them."""
        local = self._local_rows(trained)
        for name in ("completion_mask", "old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"):
            if name in output:
                output[name] = output[name].masked_fill(~local.unsqueeze(1), 0)
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        output["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()

    def _calculate_rewards(self, *args: Any) -> Tensor:
        return self._phase.reward(self._checked_rewards, *args)

    def _checked_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> Tensor:
        """Compute the rewards with TRL's method; an error of a reward function on one rank is raised on all."""
        with self._failures.deferred():
            rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if rewards_per_func.isinf().any():
            self._failures.raise_any()
            raise ValueError(f"one of the reward models {self.reward_func_names} returned an infinite reward")
        self._drop_extra_columns(len(prompts))
        return rewards_per_func

    def _drop_extra_columns(self, rows: int) -> None:
        """Drop columns with a wrong number of values, which would break the completions table."""
        for column, values in list(self._pending_extra_logs.items()):
            if len(values) != rows:
                del self._pending_extra_logs[column]
                message = f"a reward function called log_extra({column!r}, ...) with {len(values)} values for {rows} "
                warnings.warn(message + "completions; the completions table omits them", stacklevel=2)

    def _make_rollout(self, output: dict[str, Any], phase: RolloutPhase) -> Rollout:
        rewards_per_func = phase.rewards_per_func
        device = rewards_per_func.device
        rows, width = output["completion_ids"].shape
        group_size = self.num_generations if self.model.training else self.num_generations_eval

        mask = phase.model_mask(width, device)
        phase.token_values = self._token_values(phase)
        inputs = phase.metric_inputs | phase.token_values | {"mask": mask}
        with self._failures.deferred():
            measured = {
                name: self._measure(metric, name, rows, inputs).to(device)
                for name, metric in self._response_metrics.items()
                if metric is not None
            }
        # One gather for all numbers of the responses, in the order of the rewards.
        widths, lengths = torch.full((rows,), float(width), device=device), mask.sum(dim=-1).float()
        local = torch.stack([widths, lengths, *measured.values()], dim=1)
        widths, lengths, *metrics = self.accelerator.gather(local).view(-1, group_size, local.shape[1]).unbind(-1)
        width = width if self.accelerator.num_processes == 1 else int(widths.max())

        rewards = weighted_reward(rewards_per_func, self.reward_weights).view(-1, group_size)
        ranges = reward_ranges(self._estimator, self._stages)
        for reward_range in ranges.values():
            rewards = snapped(rewards, reward_range)
        accuracy = snapped(phase.drawn[:, self._accuracy_index], "[0, 1]")
        step = (self._steps_not_restored + self._step) // self._generate_every
        by_name = dict(zip(measured, metrics, strict=True))
        check_numbers(
            by_name,
            rewards,
            accuracy if self._needs_accuracy else None,
            reward_ranges=ranges,
            reward_names=self.reward_func_names,
            accuracy_reward=self.reward_func_names[self._accuracy_index],
            failures=self._failures,
        )
        for name in self._response_metrics.keys() - measured.keys():
            by_name[name] = random_metric(rewards.shape, seed=self.args.seed, step=step).to(device)
        return Rollout(
            rewards=rewards,
            rewards_per_func=rewards_per_func.view(*rewards.shape, -1),
            reward_names=tuple(self.reward_func_names),
            reward_weights=self.reward_weights.to(rewards.device),
            lengths=lengths.long(),
            metrics=ResponseMetrics(by_name),
            step=step,
            total_steps=self._total_rollouts(),
            accuracy=accuracy.nanmean().nan_to_num(0.0).clamp(0.0, 1.0),
            valid=~rewards.isnan(),
            width=width,
            token_values=self._gather_tokens(inputs, width, group_size),
        )

    def _gather_tokens(self, values: Mapping[str, Any], width: int, group_size: int) -> TokenValues:
        """Gather the values per token that the estimator reads, in the order of the rewards; usually none."""
        names = [name for name in GATHERED_ON_REQUEST if name in self._estimator.reads]
        if not names:
            return TokenValues()
        mask = values["mask"]
        local = torch.stack([values[name].float().masked_fill(~mask, 0.0) for name in names], dim=1)
        gathered = self.accelerator.gather(nn.functional.pad(local, (0, width - local.shape[-1])))
        found = dict(zip(names, gathered.unflatten(0, (-1, group_size)).unbind(2), strict=True))
        return TokenValues({name: each.bool() if name == "mask" else each for name, each in found.items()})

    def _measure(self, metric: ResponseMetric, name: str, rows: int, inputs: dict[str, Any]) -> Tensor:
        try:
            return measure(metric, name, rows, inputs)
        except Exception as error:
            return torch.tensor(self._failures.note(error, f"in metric {name!r}", rows))

    def _estimate_advantages(self, rollout: Rollout) -> Tensor:
        return checked_advantages(self._estimator(rollout), rollout)

"""The rollout on its way through TRL: rewards become a `Rollout`, and a `Rollout` becomes advantages."""

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from canon_trl.guards.failures import SharedFailures
from canon_trl.guards.rollout_checks import check_numbers, snapped, used_advantages
from canon_trl.hook.resampling import Resampling
from canon_trl.hook.rollout_parts import Making
from canon_trl.metrics import ResponseMetric, measure, random_metric
from canon_trl.rollout import ResponseMetrics, Rollout, weighted_reward
from canon_trl.sampling.prompt_checks import fault_of_rows


class Rollouts(Resampling):
    """Replaces the step from rewards to advantages; each wrapper keeps what passes by and hands it on unchanged."""

    @cached_property
    def _failures(self) -> SharedFailures:
        return SharedFailures()

    _rollout_observers: tuple[Callable[[Rollout, Tensor], object], ...] = ()

    def on_rollout(self, observe: Callable[[Rollout, Tensor], object]) -> None:
        """Have every rollout shown, of training and of evaluation, with the advantages used, `(P, G)`."""
        self._rollout_observers += (observe,)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._check_weights()
        self._weigh_policy_rewards()
        inputs, making = self._begin_rollout(inputs)
        with self._during(making):
            output = super()._generate_and_score_completions(inputs)
            rollout = self._make_rollout(output, making)
        trained = making.trained
        if trained is not None:
            self._leave_out(output, trained)
            output["trained"] = self._local(trained)
        if self._stages.whole is not None:  # it learns from a response whose advantage is 0, too
            self._leave_out(output, rollout.valid.flatten())
        advantages = self._estimate_advantages(rollout)
        width = output["completion_ids"].shape[1]
        local = self._local(advantages.flatten(0, 1))
        output["advantages"] = local[:, :width] if local.dim() == 2 else local
        if advantages.dim() == 3:  # logged as the mean over each response
            mask = making.model_mask(width, local.device)
            means = output["advantages"].masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            advantages = self.accelerator.gather(means).view_as(rollout.rewards)
        self._log_rollout(rollout, advantages, making.drawn)
        for observe in self._rollout_observers:
            observe(rollout, advantages)
        output |= self._stage_inputs(output, rollout, making)
        return output

    def _check_rows(self, rows: list[dict[str, Any]]) -> None:
        """Nobody has looked through a stream before. What is wrong on one rank is raised on all."""
        with self._failures.shared():
            if error := fault_of_rows(rows, "train_dataset" if self.model.training else "eval_dataset"):
                raise error

    def _local(self, everyones: Tensor) -> Tensor:
        """This rank's part of what all ranks know of all responses, `(N, ...)`."""
        rows = len(everyones) // self.accelerator.num_processes
        return everyones[self.accelerator.process_index * rows :][:rows]

    def _leave_out(self, output: dict[str, Any], trained: Tensor) -> None:
        """Take responses that are not `trained` on out of the loss, token by token."""
        local = self._local(trained)
        for name in ("completion_mask", "old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"):
            if name in output:
                output[name] = output[name].masked_fill(~local.unsqueeze(1), 0)
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        output["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()

    def _calculate_rewards(self, *args: Any) -> Tensor:
        return self._phase.reward(self._checked_rewards, *args)

    def _checked_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> Tensor:
        """TRL's; what a reward function raises on one rank is raised on all."""
        with self._failures.deferred():
            rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if rewards_per_func.isinf().any():
            self._failures.raise_any()
            raise ValueError(f"one of the reward models {self.reward_func_names} gave an infinite reward")
        self._drop_extra_columns(len(prompts))
        return rewards_per_func

    def _drop_extra_columns(self, rows: int) -> None:
        """Keep out of the completions table what reward functions logged of another number of rows."""
        for column, values in list(self._pending_extra_logs.items()):
            if len(values) != rows:
                del self._pending_extra_logs[column]
                message = f"a reward function called log_extra({column!r}, ...) with {len(values)} values for {rows} "
                warnings.warn(message + "completions; the completions table does not get them", stacklevel=2)

    def _make_rollout(self, output: dict[str, Any], making: Making) -> Rollout:
        rewards_per_func = making.rewards_per_func
        device = rewards_per_func.device
        rows, width = output["completion_ids"].shape
        group_size = self.num_generations if self.model.training else self.num_generations_eval

        mask = making.model_mask(width, device)
        making.token_values = self._token_values(making)
        inputs = making.metric_inputs | making.token_values | {"mask": mask}
        with self._failures.deferred():
            measured = {
                name: self._measure(metric, name, rows, inputs).to(device)
                for name, metric in self._response_metrics.items()
                if metric is not None
            }
        # One gather for all numbers of the responses, in the order in which rewards are gathered.
        widths, lengths = torch.full((rows,), float(width), device=device), mask.sum(dim=-1).float()
        local = torch.stack([widths, lengths, *measured.values()], dim=1)
        widths, lengths, *metrics = self.accelerator.gather(local).view(-1, group_size, local.shape[1]).unbind(-1)

        rewards = weighted_reward(rewards_per_func, self.reward_weights).view(-1, group_size)
        ranges = {method.name: method.reward_range for method in self._stages if method.reward_range is not None}
        if self._estimator.reward_range is not None:
            ranges["the advantage estimator"] = self._estimator.reward_range
        for reward_range in ranges.values():
            rewards = snapped(rewards, reward_range)
        accuracy = snapped(making.drawn[:, self._accuracy_index], "[0, 1]")
        step = (self._steps_not_restored + self._step) // self._generate_every
        by_name = dict(zip(measured, metrics, strict=True))
        check_numbers(
            by_name,
            rewards,
            accuracy if self._needs_accuracy else None,
            reward_ranges=ranges,
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
            width=width if self.accelerator.num_processes == 1 else int(widths.max()),
        )

    def _measure(self, metric: ResponseMetric, name: str, rows: int, inputs: dict[str, Any]) -> Tensor:
        try:
            return measure(metric, name, rows, inputs)
        except Exception as error:
            return torch.tensor(self._failures.note(error, f"in metric {name!r}", rows))

    def _estimate_advantages(self, rollout: Rollout) -> Tensor:
        return used_advantages(self._estimator(rollout), rollout)

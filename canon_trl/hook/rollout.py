"""The rollout on its way through TRL: rewards become a `Rollout`, and a `Rollout` becomes advantages."""

import warnings
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from canon_trl.guards.rollout_checks import check_numbers, snapped, used_advantages
from canon_trl.hook.generation_recorder import GenerationRecorder
from canon_trl.hook.resampling import Resampling
from canon_trl.hook.rollout_parts import GENERATED, RewardsAreKnown, RolloutParts
from canon_trl.metrics import ResponseMetric, measure, random_metric
from canon_trl.rollout import ResponseMetrics, Rollout, weighted_reward
from canon_trl.sampling.prompt_checks import fault_of_rows

RESERVED_COLUMNS = ("prompt", "completion", "completion_ids")


class Rollouts(Resampling):
    """Replaces the step from rewards to advantages; each wrapper keeps what passes by and hands it on unchanged."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._check_weights()
        collected = None
        if self._collector is not None and self.model.training:
            collected = self._collector.collect(inputs, self._sample_batch, reward_weights=self.reward_weights)
            inputs = [response.row for response in collected.responses]
            columns = {column for response in collected.responses for column in response.columns}
            for column in columns:  # of which a round or a rank may lack one
                self._pending_extra_logs[column].extend(r.columns.get(column) for r in collected.responses)
        else:
            self._check_rows(inputs)
        self._making = RolloutParts(replayed=collected)
        try:
            output = super()._generate_and_score_completions(inputs)
            rollout = self._make_rollout(output)
            if collected is not None and collected.trained is not None:
                self._leave_out(output, collected.trained)
                output["trained"] = self._local(collected.trained)
            if self._loss_function is not None:  # which an advantage of 0 would teach something
                self._leave_out(output, rollout.valid.flatten())
            advantages = self._estimate_advantages(rollout)
            width = output["completion_ids"].shape[1]
            local = self._local(advantages.flatten(0, 1))
            output["advantages"] = local[:, :width] if local.dim() == 2 else local
            if advantages.dim() == 3:  # logged as the mean over each response
                mask = self._making.model_mask(width, local.device)
                means = output["advantages"].masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
                advantages = self.accelerator.gather(means).view_as(rollout.rewards)
            self._log_rollout(rollout, advantages)
            if self._gate is not None and self.model.training:
                output |= self._gate_inputs(output, rollout)
        finally:  # an error or an evaluation in between must not leave parts of another batch behind
            self._making = None
        return output

    def _check_rows(self, rows: list[dict[str, Any]]) -> None:
        """Nobody has looked through a stream before. What is wrong on one rank is raised on all."""
        self._failures.share(fault_of_rows(rows, "train_dataset" if self.model.training else "eval_dataset"))

    def _local(self, everyones: Tensor) -> Tensor:
        """This rank's part of what all ranks know of all responses, `(N, ...)`."""
        rows = len(everyones) // self.accelerator.num_processes
        return everyones[self.accelerator.process_index * rows :][:rows]

    def _leave_out(self, output: dict[str, Any], trained: Tensor) -> None:
        """Responses of which not `trained` have no part in the loss: no token of theirs is trained on."""
        local = self._local(trained)
        for name in ("completion_mask", "old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"):
            if name in output:
                output[name] = output[name].masked_fill(~local.unsqueeze(1), 0)
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        output["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()

    def _generate(self, prompts: list) -> tuple:
        if self._making is None:  # called from elsewhere than a rollout
            return super()._generate(prompts)
        if self._making.replayed is not None:
            return self._replay(self._making.replayed.responses)
        if self._records_generation and not self._trl_scores and self._scored_inputs:
            model = self.accelerator.unwrap_model(self.model)
            model = model.get_base_model() if isinstance(model, PeftModel) else model
            self._making.recorder = GenerationRecorder(
                model, temperature=self.temperature, log_probs="log_probs" in self._scored_inputs
            )
        with self._making.recorder or nullcontext():
            generated = super()._generate(prompts)
        self._making.completion_ids, self._making.tool_mask = generated[1], generated[2]
        if self._making.recorder is not None:
            self._making.recorded = self._making.recorder.of(generated[1])
        if self._making.sampling_only:
            # The extra fields of a rollout_func are in the rows by the time that the rewards are known.
            self._making.generated = {
                name: part for name, part in zip(GENERATED, generated, strict=True) if name != "extra_fields"
            }
            self._making.generated["tool_images"] = generated[7] or None
        return generated

    def _calculate_rewards(self, inputs: list, prompts: list, completions: list, completion_ids_list: list) -> Tensor:
        replayed = self._making.replayed if self._making is not None else None
        if replayed is not None:
            rewards_per_func = replayed.rewards_per_func
        else:
            with self._failures.deferred():
                rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            if rewards_per_func.isinf().any():
                self._failures.raise_any()
                raise ValueError(f"one of the reward models {self.reward_func_names} gave an infinite reward")
            self._drop_extra_columns(len(prompts))
        if self._making is None:  # called from elsewhere than a rollout
            return rewards_per_func
        self._making.rewards_per_func = rewards_per_func
        self._making.drawn = replayed.drawn if replayed is not None else rewards_per_func
        columns = {key: [row[key] for row in inputs] for key in inputs[0] if key not in RESERVED_COLUMNS}
        texts = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids_list}
        self._making.metric_inputs = columns | texts
        if self._making.sampling_only:
            raise RewardsAreKnown
        return rewards_per_func

    def _drop_extra_columns(self, rows: int) -> None:
        """Keep out of the completions table what reward functions logged of another number of rows."""
        for column, values in list(self._pending_extra_logs.items()):
            if len(values) != rows:
                del self._pending_extra_logs[column]
                message = f"a reward function called log_extra({column!r}, ...) with {len(values)} values for {rows} "
                warnings.warn(message + "completions; the completions table does not get them", stacklevel=2)

    def _make_rollout(self, output: dict[str, Any]) -> Rollout:
        rewards_per_func = self._making.rewards_per_func
        device = rewards_per_func.device
        rows, width = output["completion_ids"].shape
        group_size = self.num_generations if self.model.training else self.num_generations_eval

        mask = self._making.model_mask(width, device)
        self._making.token_values = self._token_values(output)
        inputs = self._making.metric_inputs | self._making.token_values | {"mask": mask}
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
        rewards = rewards if self._reward_range is None else snapped(rewards, self._reward_range)
        accuracy = snapped(self._making.drawn[:, self._accuracy_index], "[0, 1]")
        step = (self._steps_not_restored + self._step) // self._generate_every
        by_name = dict(zip(measured, metrics, strict=True))
        check_numbers(
            by_name,
            rewards,
            accuracy if self._needs_accuracy else None,
            reward_range=self._reward_range,
            accuracy_reward=self.reward_func_names[self._accuracy_index],
            failures=self._failures,
        )
        for name in self._response_metrics.keys() - measured.keys():
            by_name[name] = random_metric(rewards.shape, seed=self.args.seed, step=step).to(device)
        return Rollout(
            rewards=rewards,
            rewards_per_func=rewards_per_func.view(*rewards.shape, -1),
            reward_names=tuple(self.reward_func_names),
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
        return used_advantages(self._advantage_estimator(rollout), rollout)

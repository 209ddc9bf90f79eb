"""The hook that TRL lacks: rewards become advantages in a function of your own.

This is the only file that touches private members of TRL. It wraps them, so that everything TRL does to a rollout
still happens, and copies none. What it relies on in TRL 1.16, checked by `tests/test_seams.py`:

    _generate(prompts)                          eight parts, see `GENERATED`; lists by response of this rank, or None
    _calculate_rewards(inputs, prompts, ...)    (N, F), gathered over the ranks, rank-major
    _get_per_token_logps_and_entropies(...)     (log_probs, entropies, aux_loss) of the completion positions
    _generate_and_score_completions(inputs)     dict with "advantages", "completion_ids", ...; rows of this rank
    _compute_loss(model, inputs)                scores the micro-batch first, then reads `inputs["advantages"]`
    epsilon_low, epsilon_high                   the bounds of its ratio clipping
    aux_loss_enabled, router_aux_loss_coef      what it adds for a mixture of experts
    _metrics, _logs                             what `log` averages and tabulates
    _pending_extra_logs                         columns that reward functions put into the table, before it is written
    _step, _buffered_inputs                     the position in, and the rest of, the rollout in flight
    _pending_metrics, _current_train_step_time, _last_world_entropy, _entropy_window_stats, _last_loaded_step
                                                what else outlives a run
    reward_funcs, reward_func_names             functions are called in place, in this order
    _save_checkpoint, _load_optimizer_and_scheduler, _get_train_sampler, _get_grad_norm, _get_output_dir
    _tr_loss, _total_loss_scalar, _globalstep_last_logged, _load_rng_state
                                                the loss since it was last logged; what is called right before training
    _init_training_state(max_steps, ...)        (epoch, batches of it) to begin at; a stream's epoch holds all steps
    _name, _tag_names, _paper                   what the model card says
    push_in_progress, _push_from_checkpoint, _finish_current_push
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sized
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, send_to_device
from datasets import IterableDataset
from peft import PeftModel
from torch import Tensor, nn
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import nanstd, strip_images_from_messages

from canon_trl.advantages import AdvantageEstimator, RewardRange, dr_grpo_advantage
from canon_trl.advantages.groups import has_spread
from canon_trl.config.checks import (
    PER_TOKEN,
    check_dynamic_sampling,
    check_loss_function,
    check_policy_loss,
    check_shrink,
    check_vllm,
    one_rollout_a_step,
)
from canon_trl.config.run_length import micro_batches, rollouts_in_run
from canon_trl.config.sampler import (
    check_generation_kwargs,
    records_generation,
    samples_the_policy,
    trl_scores,
)
from canon_trl.evaluation.training_curves import save_history
from canon_trl.hub import failure_told, upload_command
from canon_trl.metrics import ResponseMetric, measure, random_metric, token_inputs
from canon_trl.policy_losses import POLICY_LOSSES, PolicyLoss
from canon_trl.rollout import ResponseMetrics, Rollout, weighted_reward
from canon_trl.sampling import DynamicSampling, PromptStream
from canon_trl.sampling.prompt_checks import fault_of_rows
from canon_trl.trainers.checkpoints import (
    ROLLOUT_STATE,
    RUN_OPTIONS,
    find_together,
    mark_whole,
    options_of_run,
    passes_and_batches,
)
from canon_trl.trainers.constant_rewards import ConstantRewards
from canon_trl.trainers.data_checks import (
    check_chat_template,
    check_data,
    check_model_names,
    check_reward_templates,
    named_processing_class,
)
from canon_trl.trainers.epoch_ends import EpochEnds
from canon_trl.trainers.failures import SharedFailures, guarded_reward
from canon_trl.trainers.finite import all_finite, local_part, plain_number, raise_unless
from canon_trl.trainers.generation_recorder import GenerationRecorder
from canon_trl.trainers.group_collector import GroupCollector, SampledBatch, SampledResponse
from canon_trl.trainers.jit_checkpoint import write_at_step_begin
from canon_trl.trainers.model_card import (
    TrainingFacts,
    changed_options,
    complete_card,
    describe_data,
    describe_model,
    is_on_hub,
    logged_results,
    own_options,
)
from canon_trl.trainers.reference_state import check_reference, check_saved_reference, load_reference, save_reference
from canon_trl.trainers.reward_names import check_accuracy_reward, distinct_names
from canon_trl.trainers.rollout_checks import check_numbers, snapped, used_advantages
from canon_trl.trainers.rollout_files import load_rollout, rollout_file, warn_of_missing_random_states
from canon_trl.trainers.rollout_parts import GENERATED, RewardsAreKnown, RolloutParts, ScoringPass, plain
from canon_trl.trainers.shrunken_steps import ShrunkenSteps, places_over_trained
from canon_trl.trainers.token_gate import TokenGate, trained_tokens

logger = logging.getLogger(__name__)

RESERVED_COLUMNS = ("prompt", "completion", "completion_ids")

# The completions table: `_logs` holds texts and columns by name; images are not saved.
TABLE_TEXTS = ("prompt", "completion")
TABLE_COLUMNS = ("rewards", "extra")

# Inputs of the model beside the tokens, as `_generate_and_score_completions` hands them to the loss.
MULTIMODAL_INPUTS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)


class PluggableGRPOTrainer(GRPOTrainer):
    """[`~trl.GRPOTrainer`] with the step from rewards to advantages replaced by a function.

    Beyond that it saves the rollout in flight with every checkpoint, so that a resumed run continues as if it had
    never stopped, where TRL would throw the rollout away.

    Args:
        model, reward_funcs, args, train_dataset, eval_dataset, **trl_kwargs: as for [`~trl.GRPOTrainer`].
        advantage_estimator: called with a [`~canon_trl.rollout.Rollout`] on every rank; returns advantages `(P, G)`,
            or `(P, G, T)` with T at least `Rollout.width`. Responses without a reward get advantage 0 in any case.
        metrics: the response metrics that the rollout carries, by name; `None` stands for the random metric.
        accuracy_reward: name of the reward function behind `Rollout.accuracy`; default the first.
        needs_accuracy: whether the estimator reads `Rollout.accuracy`; its reward must then lie in [0, 1].
        reward_range: the rewards for which the estimator is defined; others are refused.
        entropy_source: `"generation"`, `"forward"` or `"auto"`, see [`~canon_trl.CANONConfig`].
        loss_function: the whole loss in place of TRL's, `(log_probs, ref_log_probs, advantages, mask) -> 0-d` of one
            micro-batch, `(B, T)` each but the advantages `(B,)`; needs `args.beta` above 0 for the reference.
        policy_loss: what single tokens weigh in the loss, see `canon_trl.policy_losses`; default all alike.
        dynamic_sampling: how groups that teach nothing are replaced, see `canon_trl.sampling`; default not at all.
        reward_time_limit: seconds that a call of a reward function may take; default no limit.
        resume_with_changes: whether a checkpoint that was made with other options is resumed; default refused.

    Raises:
        ValueError: before a model is loaded where it can be known by then: an unknown reward name, an entropy source
            that the setting does not allow, data without prompts or with one that is missing, conversations without a
            chat template, a model that is nowhere. A stream's prompts are looked at as they come. At the first
            rollout: a metric that is not finite, an accuracy outside [0, 1] that is needed, advantages of another
            shape or not finite. From `train`: a checkpoint that is not whole or was made with other options, an output
            folder of another run.
        TypeError, ValueError, TimeoutError: a reward function that returns no numbers, a wrong count, an infinity, or
            nothing in time. What a reward function or a metric raises on one rank is raised on all.
        FloatingPointError: weights, log-probabilities, the loss or gradients that are not finite, before they have
            changed a weight where that can be; with the step and the tensor.
    """

    reward_funcs: list[Any]
    reward_func_names: list[str]

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: GRPOConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        advantage_estimator: AdvantageEstimator,
        metrics: Mapping[str, ResponseMetric | None],
        accuracy_reward: str | None = None,
        needs_accuracy: bool = False,
        reward_range: RewardRange | None = None,
        entropy_source: str = "auto",
        loss_function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None,
        policy_loss: PolicyLoss | None = None,
        dynamic_sampling: DynamicSampling | None = None,
        reward_time_limit: float | None = None,
        resume_with_changes: bool = False,
        **trl_kwargs: Any,
    ) -> None:
        if trl_kwargs.get("environment_factory") is None:
            check_accuracy_reward(accuracy_reward, reward_funcs)
        check_model_names(model, reward_funcs)
        templated = check_data(train_dataset, eval_dataset, args, trl_kwargs) and not trl_kwargs.get("rollout_func")
        if templated:
            given = trl_kwargs.get("processing_class")
            check_chat_template(
                named_processing_class(model, args) if given is None else given, "the tokenizer of the model"
            )
        check_dynamic_sampling(dynamic_sampling is not None, trl_kwargs)
        check_shrink(dynamic_sampling, args)
        check_vllm(args)
        check_generation_kwargs(args)
        self._records_generation = records_generation(entropy_source, args, trl_kwargs)
        self._advantage_estimator = advantage_estimator
        self._response_metrics = dict(metrics)
        self._trl_scores = trl_scores(args)
        self._samples_the_policy = samples_the_policy(args)
        named = set().union(*(token_inputs(metric) for metric in metrics.values() if metric is not None))
        self._scored_inputs = named & {"entropies", "log_probs"}
        if policy_loss is not None:
            check_policy_loss(args, policy_loss)
            if policy_loss.scope == "batch" and not self._trl_scores:
                self._scored_inputs |= {"log_probs"}
        if loss_function is not None:
            check_loss_function(args, policy_loss)
        self._needs_accuracy = needs_accuracy
        self._reward_range = reward_range
        if entropy_source != "auto" and not self._scored_inputs:
            raise ValueError(
                f"entropy_source={entropy_source!r} would be ignored: neither the metrics {list(metrics)} nor a "
                "policy loss read entropies or log-probabilities of the rollout; leave it at 'auto'"
            )
        self._making: RolloutParts | None = None
        self._loss_function = loss_function
        self._losing: dict[str, Any] | None = None  # the micro-batch whose loss is being computed
        self._steps_not_restored = 0  # micro-batches before a resume that `_step` does not count
        self._epoch_length = 0  # in micro-batches
        self._rollouts_in_run = 0
        self._given_optimizer = trl_kwargs.get("optimizers", (None, None))[0]
        self._has_trained = False
        if isinstance(reward_funcs, list):
            reward_funcs = list(reward_funcs)  # which is changed below, and the caller's may go to another trainer
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, **trl_kwargs)
        self.reward_func_names = distinct_names(self.reward_func_names)
        if not self.use_vllm and self.min_p is None and self.model.generation_config.min_p is not None:
            self.generation_config.min_p = 0.0  # for None generate would take the model's own
        if accuracy_reward is not None and accuracy_reward not in self.reward_func_names:
            raise ValueError(
                f"accuracy_reward={accuracy_reward!r} must be one of the reward functions {self.reward_func_names}"
            )
        if templated:
            check_chat_template(self.processing_class, "the tokenizer of the model")
            check_reward_templates(self.reward_funcs, self.reward_processing_classes, self.reward_func_names)
        self._failures = SharedFailures(self.accelerator)
        for index, (function, name) in enumerate(zip(self.reward_funcs, self.reward_func_names, strict=True)):
            if not isinstance(function, nn.Module):
                self.reward_funcs[index] = guarded_reward(function, name, self._failures, reward_time_limit)
        self._constant_rewards = ConstantRewards(self.reward_func_names)
        self._loss_to_log: tuple[float, int] | None = None  # summed before a resume, and since which step
        self.add_callback(EpochEnds())
        if args.enable_jit_checkpoint:
            write_at_step_begin(self)
        if args.sync_ref_model:
            check_reference(self.accelerator)
        self._resume_with_changes = resume_with_changes
        self._gate: TokenGate | None = None
        if policy_loss is not None:
            self._gate = TokenGate(policy_loss, self.accelerator, args.seed)
            if not policy_loss.clips_ratios:
                self.epsilon_low, self.epsilon_high = 1.0, math.inf  # a ratio is never below 0
        self._accuracy_index = self.reward_func_names.index(accuracy_reward) if accuracy_reward else 0
        self._collector: GroupCollector | None = None
        if dynamic_sampling is not None:
            self._collector = GroupCollector(
                dynamic_sampling,
                self.accelerator,
                PromptStream(self.train_dataset, seed=args.seed, shuffle=self.shuffle_dataset),
                group_size=self.num_generations,
                accuracy_index=self._accuracy_index,
            )
        self._shrunken_steps: ShrunkenSteps | None = None
        shrinks = dynamic_sampling is not None and dynamic_sampling.exhausted == "shrink"
        if shrinks and self.loss_type not in PER_TOKEN and not one_rollout_a_step(args):
            self._shrunken_steps = ShrunkenSteps(self.loss_type, self.accelerator)
            if self.aux_loss_enabled:
                raise ValueError(
                    f"gradient_accumulation_steps={args.gradient_accumulation_steps} takes micro-batches of several "
                    f"rollouts of steps_per_generation={args.steps_per_generation}, whose gradients are scaled "
                    "together with those of the router's auxiliary loss; make the latter a multiple of the former, or "
                    "set dynamic_sampling_kwargs={'exhausted': 'keep'} or 'error'"
                )

    # --- The rollout on its way through TRL: each wrapper keeps what passes by and hands it on unchanged. ---

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

    def _sample_batch(self, inputs: list[dict[str, Any]]) -> SampledBatch:
        """Generate and score a response to each row, and go no further."""
        self._check_rows(inputs)
        self._making = RolloutParts(sampling_only=True)
        try:
            super()._generate_and_score_completions(inputs)
        except RewardsAreKnown:
            parts = self._making
        finally:
            self._making = None
        columns = {name: list(values) for name, values in self._pending_extra_logs.items()}
        self._pending_extra_logs.clear()
        return SampledBatch(
            [
                SampledResponse(
                    row,
                    {name: None if part is None else part[index] for name, part in parts.generated.items()},
                    parts.recorded[index] if parts.recorded else {},
                    {name: values[index] for name, values in columns.items()},
                )
                for index, row in enumerate(inputs)
            ],
            parts.rewards_per_func,
        )

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

    def _replay(self, responses: list[SampledResponse]) -> tuple:
        """What `_generate` would return for responses that are there already."""

        def part(name: str) -> Any:
            values = [response.generated[name] for response in responses]
            return None if all(value is None for value in values) else values

        parts = {name: part(name) for name in GENERATED if name != "extra_fields"} | {"extra_fields": {}}
        self._making.completion_ids, self._making.tool_mask = parts["completion_ids"], parts["tool_mask"]
        self._making.recorded = [response.recorded for response in responses]
        return tuple((parts[name] or []) if name == "tool_images" else parts[name] for name in GENERATED)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple:
        if self._losing is not None:
            scored = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, compute_entropy=compute_entropy, **kwargs
            )
            self._losing["log_probs"], self._losing["aux_loss"] = scored[0], scored[2]
            if self._gate is None or not self.model.training:
                return scored
            step_batch = self._step_batch()
            self._losing["advantages"] = self._gate.advantages(
                scored[0],
                self._losing,
                step_batch,
                step=self.state.global_step,
                micro_step=self._steps_not_restored + self._step,
                position=self._position % len(step_batch),
            )
            return scored
        if self._making is not None and self._making.sampling_only and self._making.completion_ids is not None:
            nothing = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
            return nothing, nothing, None  # of which nothing will be read
        # On the completions of a rollout, not within a rollout_func, and on the policy: the reference model's head
        # yields no entropy.
        completed = self._making is not None and self._making.completion_ids is not None
        keep = completed and model is self.model and bool(self._scored_inputs)
        if not keep:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, compute_entropy=compute_entropy, **kwargs
            )
        # A completion that is masked as truncated would be scored as empty. Score what was written, and give TRL the
        # zeros that it expects there.
        written = self._making.written_mask(logits_to_keep, input_ids.device)
        trained = attention_mask[:, -logits_to_keep:].bool()
        attention_mask = torch.cat([attention_mask[:, :-logits_to_keep], written.to(attention_mask.dtype)], dim=1)
        log_probs, entropies, aux_loss = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, compute_entropy=True, **kwargs
        )
        for_trl = log_probs.masked_fill(~trained, 0.0)
        self._making.passes.append(ScoringPass(for_trl, log_probs, entropies))
        return for_trl, entropies, aux_loss

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

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._losing = inputs = dict(inputs)  # its advantages may be replaced between the scoring and the loss
        if inputs["advantages"].dim() == 2:  # what stands on padding may be NaN, and TRL multiplies it by 0
            inputs["advantages"] = inputs["advantages"].masked_fill(~trained_tokens(inputs), 0.0)
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._losing = None
        accumulated = self.current_gradient_accumulation_steps if self.model.training else 1
        routing = self.router_aux_loss_coef * inputs["aux_loss"] / accumulated if self.aux_loss_enabled else 0.0
        if self._loss_function is not None:
            # TRL's own loss is left without a backward pass; what it logs stands.
            parts = (inputs["log_probs"], inputs["ref_per_token_logps"], inputs["advantages"], trained_tokens(inputs))
            loss = self._loss_function(*parts) / accumulated + routing
        self._check_loss(loss, inputs)
        if self._loss_function is not None:
            return loss
        if self._shrunken_steps is not None and self.model.training:
            rows = inputs["completion_ids"]
            self._shrunken_steps.note(inputs.get("trained"), len(rows), rows.device)
            return loss
        if "trained" not in inputs:
            return loss
        trained = [micro_batch["trained"] for micro_batch in self._step_batch()]
        return (loss - routing) * places_over_trained(trained, self.loss_type, self.accelerator) + routing

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        return loss if self._shrunken_steps is None else self._shrunken_steps.scaled(loss, self.model.parameters())

    def _step_batch(self) -> list[dict[str, Any]]:
        """The micro-batches of the rollout that belong to the optimiser step under way."""
        size = min(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        return self._buffered_inputs[self._position // size * size :][:size]

    @property
    def _position(self) -> int:
        """Which micro-batch of the rollout is trained on."""
        return self._step % self.args.steps_per_generation

    # --- Its parts put together ---

    @property
    def _generate_every(self) -> int:
        """Micro-batches that are trained on from one rollout."""
        return self.args.steps_per_generation * self.num_iterations

    def _token_values(self, output: dict[str, Any]) -> dict[str, Tensor]:
        """Those of `entropies` and `log_probs` that the metrics read, `(B, T)`, from where they cost least."""
        values = {}
        if "log_probs" in self._scored_inputs and "sampling_per_token_logps" in output and self._samples_the_policy:
            values["log_probs"] = output["sampling_per_token_logps"]
        if not self._scored_inputs - values.keys():
            return values
        # TRL's own pass over the policy is the one whose log-probabilities it kept; another one on the same module is
        # that of the reference, with the adapters off.
        old_log_probs = output.get("old_per_token_logps")
        scored = [scoring for scoring in self._making.passes if scoring.for_trl is old_log_probs]
        completion_ids = output["completion_ids"]
        if scored:
            found = {"entropies": scored[0].entropies, "log_probs": scored[0].log_probs}
        elif self._making.recorded and self._making.recorded[0]:
            found = self._making.padded_records(completion_ids.shape[1], completion_ids.device)
        else:
            found = self._score(output)
        return found | values

    @torch.no_grad()
    def _score(self, output: dict[str, Any]) -> dict[str, Tensor]:
        """A scoring pass of our own."""
        training = self.model.training
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                output["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size,
                **{key: output[key] for key in MULTIMODAL_INPUTS if key in output},
            )
        scored = self._making.passes[-1]
        return {"entropies": scored.entropies, "log_probs": scored.log_probs}

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

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple:
        """As transformers', which plans a run here; the number of its rollouts is kept."""
        values = super().set_initial_training_values(args, dataloader)
        *_, self._epoch_length, steps = values
        self._rollouts_in_run = rollouts_in_run(
            steps,
            an_epoch=self._epoch_length,
            accumulation=args.gradient_accumulation_steps,
            a_rollout=self._generate_every,
        )
        return values

    def _total_rollouts(self) -> int:
        """Rollouts of the whole run, also before it has begun."""
        if not self._rollouts_in_run:
            self.set_initial_training_values(self.args, self.get_train_dataloader())
        return self._rollouts_in_run

    def _measure(self, metric: ResponseMetric, name: str, rows: int, inputs: dict[str, Any]) -> Tensor:
        try:
            return measure(metric, name, rows, inputs)
        except Exception as error:
            return torch.tensor(self._failures.note(error, f"in metric {name!r}", rows))

    def _estimate_advantages(self, rollout: Rollout) -> Tensor:
        return used_advantages(self._advantage_estimator(rollout), rollout)

    def _gate_inputs(self, output: dict[str, Any], rollout: Rollout) -> dict[str, Tensor]:
        """What the policy loss needs beside TRL's own: which response a row is, and its log-probabilities."""
        self._gate.width = rollout.width
        responses = torch.arange(rollout.rewards.numel(), device=output["completion_ids"].device)
        added = {"response": self._local(responses)}
        if self._gate.policy_loss.scope == "batch":
            old_log_probs = output.get("old_per_token_logps")
            found = self._making.token_values.get("log_probs") if old_log_probs is None else old_log_probs
            added["rollout_log_probs"] = found.float()
        return added

    # --- Numbers that are not finite: stopped where they are first seen, on all ranks alike ---

    def _check_weights(self) -> None:
        """Before a rollout is sampled from them; the weights that are not trained do not change."""
        trained = [local_part(weight) for weight in self.model.parameters() if weight.requires_grad]
        self._raise_unless(all_finite(trained, self.accelerator.device), "the rollout is not sampled", {})

    def _check_loss(self, loss: Tensor, inputs: dict[str, Any]) -> None:
        """Before it is differentiated. A loss that sums over tokens is finite if its terms are."""
        tensors = {
            "the policy's log-probabilities": inputs["log_probs"],
            "the log-probabilities of the rollout": inputs.get("old_per_token_logps"),
            "the reference model's log-probabilities": inputs.get("ref_per_token_logps"),
            "the advantages": inputs["advantages"],
        }
        self._raise_unless(loss.detach().isfinite(), "the loss is not finite", tensors)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """transformers calls this between clipping and the optimiser's step."""
        norm = plain_number(super()._get_grad_norm(model, grad_norm))
        if norm is not None and self.accelerator.scaler is None:  # which skips such steps
            gradients = {f"the gradient of {name}": p.grad for name, p in self.model.named_parameters()}
            finite = torch.as_tensor(norm, device=self.accelerator.device).isfinite()
            self._raise_unless(finite, f"the norm of the gradients is {norm}", gradients)
        return norm

    def _raise_unless(self, finite: Tensor, what: str, tensors: Mapping[str, Tensor | None]) -> None:
        what = f"optimiser step {self.state.global_step}: {what}"
        raise_unless(finite, what, self.model.named_parameters(), tensors, self.accelerator)

    # --- What is logged of it ---

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
        """Columns of the completions table beside TRL's own, `(P, G)` each; override to add more."""
        return {f"metric/{name}": metric for name, metric in rollout.metrics.items()}

    def _log_rollout(self, rollout: Rollout, advantages: Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        own = self._reward_statistics(rollout.rewards)
        statistics = self.rollout_statistics(rollout, advantages) | own
        if self._collector is not None and mode == "train":
            for name, value in self._collector.statistics.items():
                self._metrics[mode][f"dynamic_sampling/{name}"].append(value)
        values = torch.stack([torch.as_tensor(v, device=advantages.device).float() for v in statistics.values()])
        by_function = self._making.drawn
        bounds = [by_function.nan_to_num(nan=math.inf).amin(dim=0), by_function.nan_to_num(nan=-math.inf).amax(dim=0)]
        parts = [advantages.isfinite().all().float().unsqueeze(0), *bounds, values]
        finite, *numbers = torch.cat([part.float() for part in parts]).tolist()  # one wait for all of them
        functions = len(self.reward_func_names)
        lowest, highest, numbers = numbers[:functions], numbers[functions : 2 * functions], numbers[2 * functions :]
        if mode == "train":
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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._collect_statistics()
        super().log(logs, start_time)

    def _collect_statistics(self) -> None:
        """Bring what the policy loss noted to the host, all at once."""
        noted = self._gate.pop_statistics() if self._gate is not None else []
        if noted:
            values = torch.stack([torch.stack(list(statistics.values())).float() for statistics in noted])
            for name, column in zip(noted[0], values.T.tolist(), strict=True):
                self._metrics["train"][f"policy_loss/{name}"].extend(column)

    # --- Checkpoints: the rollout in flight, and the order of the prompts ---

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._prompt_sampler = super()._get_train_sampler(dataset)
        return self._prompt_sampler

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As TRL's, but `True` resumes from the last checkpoint that is whole, and begins where there is none.

        Every call is a run of its own, which has nothing but the weights of the one before it.
        """
        found = find_together(
            resume_from_checkpoint,
            Path(self.args.output_dir),
            self._run_options(),
            allow_changes=self._resume_with_changes,
            failures=self._failures,
        )
        if found is not None and self.args.sync_ref_model:
            check_saved_reference(Path(found), allow_changes=self._resume_with_changes)
        if self._has_trained:
            self._forget_the_last_run()
        self._has_trained = True
        return super().train(found, *args, **kwargs)

    def _forget_the_last_run(self) -> None:
        """What TRL and this trainer carry from one rollout or optimiser step to the next, as it was at first."""
        self._step = self._steps_not_restored = 0  # so that a rollout is made first of all
        self._current_train_step_time = 0.0
        self.entropy_coef, self._last_world_entropy = self.args.entropy_coef, math.inf  # of TRL's entropy bonus
        self._entropy_window_stats = None
        self._last_loaded_step = -1  # the optimiser step whose weights vLLM has
        for noted in (*self._metrics.values(), *self._logs.values(), self._pending_extra_logs, self._pending_metrics):
            noted.clear()
        self._constant_rewards = ConstantRewards(self.reward_func_names)
        if self._gate is not None:
            self._gate = TokenGate(self._gate.policy_loss, self.accelerator, self.args.seed)
        if self._collector is not None:
            self._collector.prompts.restart()
        if self._shrunken_steps is not None:
            self._shrunken_steps = ShrunkenSteps(self.loss_type, self.accelerator)
        self.optimizer = self._given_optimizer

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """The epoch to begin in, and the batches of it that have been trained on."""
        begun = super()._init_training_state(max_steps, steps_per_epoch, epochs, checkpoint, trial)
        if checkpoint is None:
            return begun
        for callback in self.callback_handler.callbacks:  # transformers can save the state of none that is new to it
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
        if self.state.global_step >= max_steps:  # from where transformers would train one step more
            return epochs, 0
        if not isinstance(self.train_dataset, IterableDataset) or self.args.ignore_data_skip:
            return begun
        return passes_and_batches(checkpoint, self.args.gradient_accumulation_steps)

    def _run_options(self) -> dict[str, Any]:
        return options_of_run(
            self.args,
            method=self._name,
            model=os.path.basename(self.model.config._name_or_path.rstrip("/")),
            metrics=list(self._response_metrics),
            reward_functions=self.reward_func_names,
            prompts=len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None,
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_folder = self._get_output_dir(trial=trial)
        checkpoint = Path(run_folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        kept, self.args.save_total_limit = self.args.save_total_limit, None  # none goes before this one is whole
        try:
            if self.args.should_save:
                (checkpoint / RUN_OPTIONS).unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
            if not self.args.save_only_model:
                checkpoint.mkdir(parents=True, exist_ok=True)
                torch.save(self._rollout_state(), rollout_file(checkpoint, self.accelerator.process_index))
                if self.args.sync_ref_model:
                    save_reference(self._reference(), checkpoint, writes=self.args.should_save)
            super()._save_checkpoint(model, trial)
        except Exception as error:  # on a full disk OSError, RuntimeError of torch, or SafetensorError
            error.add_note(
                f"{checkpoint} is not whole and will not be resumed from; earlier checkpoints are as they were"
            )
            raise
        finally:
            self.args.save_total_limit = kept
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_whole(checkpoint, self._run_options())
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(checkpoint))
            best = self.state.best_model_checkpoint
            rotate_checkpoints(run_folder, save_total_limit=kept, best_model_checkpoint=best, use_mtime=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._restore_prompt_order()
            state, missing = load_rollout(checkpoint, self._failures)
            self._restore_fresh_prompts(state)
            self._restore_rollout(state, missing)
            if self.args.sync_ref_model:
                load_reference(self._reference(), Path(checkpoint))

    def _reference(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.ref_model)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called once on resume, right before the first training step."""
        error = None
        if checkpoint is not None:
            warn_of_missing_random_states(checkpoint, self.accelerator)
        try:
            super()._load_rng_state(checkpoint)
        except Exception as cause:  # a file that is torn, perhaps on one rank only
            error = cause
            error.add_note(f"a random state of {checkpoint} cannot be read; resume from an earlier checkpoint")
        self._failures.share(error)
        if self._loss_to_log is not None:
            summed, self._globalstep_last_logged = self._loss_to_log
            self._tr_loss += summed
            self._total_loss_scalar -= summed  # what `train` reports is of its own steps
            self._loss_to_log = None

    def _rollout_state(self) -> dict[str, Any]:
        """Tensors, numbers and text only, so that it can be loaded without running code from the file."""
        self._collect_statistics()
        texts: dict[str, list] = {}
        columns: dict[str, dict[str, list]] = {}
        if self.log_completions and self.accelerator.is_main_process:  # nobody else reads the table
            texts = {name: [strip_images_from_messages(text) for text in self._logs[name]] for name in TABLE_TEXTS}
            texts["advantages"] = list(self._logs["advantages"])
            columns = {name: dict(self._logs[name]) for name in TABLE_COLUMNS}
        return {
            "sampling": self._sampling(),
            "step": self._step,
            "width": self._gate.width if self._gate is not None else 0,
            "fresh_prompts": plain(self._collector.prompts.state_dict()) if self._collector is not None else None,
            "in_flight": self._buffered_inputs if self._step % self._generate_every else None,
            "metrics": dict(self._metrics["train"]),
            "loss_to_log": (self._tr_loss.item(), self._globalstep_last_logged),
            "reward_weights": (self.args.reward_weights, self.reward_weights.tolist()),
            "constant_rollouts": self._constant_rewards.in_a_row,
            "table": plain(texts),
            "table_columns": plain(columns),
        }

    def _sampling(self) -> dict[str, int | str]:
        """What the parts of a rollout in flight depend on."""
        return {
            "num_processes": self.accelerator.num_processes,
            "per_device_train_batch_size": self.args.per_device_train_batch_size,
            "steps_per_generation": self.args.steps_per_generation,
            "num_iterations": self.num_iterations,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
            "policy_loss": repr(self._gate.policy_loss) if self._gate is not None else "",
        }

    def _restore_rollout(self, state: dict[str, Any] | None, missing: list[int]) -> None:
        self._steps_not_restored = micro_batches(
            self.state.global_step,
            an_epoch=self._epoch_length,
            accumulation=self.args.gradient_accumulation_steps,
        )
        self._loss_to_log = None
        if state is None or missing:
            logger.warning(
                "%s is missing for the ranks %s, as in a checkpoint of another trainer or of fewer processes: a "
                "rollout in flight is sampled anew",
                ROLLOUT_STATE,
                missing,
            )
            return
        if state["sampling"] != self._sampling():
            logger.warning(
                "the checkpoint was written with %s and is resumed with %s: a rollout in flight is sampled anew",
                state["sampling"],
                self._sampling(),
            )
            return
        if self._gate is not None:
            self._gate.width = state["width"]
        self._step, self._steps_not_restored = state["step"], 0
        self._constant_rewards.in_a_row = state["constant_rollouts"]
        self._buffered_inputs = send_to_device(state["in_flight"], self.accelerator.device)
        self._metrics["train"].update(state["metrics"])
        self._loss_to_log = state["loss_to_log"]
        given, weights = state["reward_weights"]
        if given == self.args.reward_weights:  # a callback may have changed them since
            self.reward_weights = torch.tensor(weights)
        for name, rows in state["table"].items():
            self._logs[name].extend(rows)
        for name, columns in state["table_columns"].items():
            for column, rows in columns.items():
                self._logs[name][column].extend(rows)

    def _restore_fresh_prompts(self, state: dict[str, Any] | None) -> None:
        """The main process tells all where they are, so that ranks that were not there before agree."""
        if self._collector is not None:
            (place,) = broadcast_object_list([state["fresh_prompts"] if state is not None else None])
            if place is not None:
                self._collector.prompts.load_state_dict(place)

    def _restore_prompt_order(self) -> None:
        """TRL's sampler draws one permutation an epoch and forgets on resume how many it has drawn."""
        if not isinstance(self.train_dataset, IterableDataset):  # a stream is shuffled by its epoch
            for _ in range(int(self.state.epoch)):  # no checkpoint is written between an epoch's last step and its end
                next(iter(self._prompt_sampler))

    # --- The model card and the Hub ---

    _tag_names = ["trl", "canon_trl"]
    _name = "an advantage estimator"
    _paper: dict[str, str] = {}

    def method_options(self) -> dict[str, Any]:
        """The options of the method, as the model card lists them; `None` hides one."""
        return own_options(self.args)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write `README.md`: TRL's card, and the method with its options, curves, results and citations.

        Beside it `metrics.csv`, `metrics.json` and `curves.png` are written; during training, where that would be at
        every checkpoint, only if checkpoints are pushed.

        Args:
            model_name: default the name of the output folder.
            dataset_name: a name on the Hub, or words that say what was trained on.
            tags: beside those of the method.
        """
        if not self.is_world_process_zero():
            return
        folder, history = Path(self.args.output_dir), self.state.log_history
        beside = self._beside()
        on_hub = dataset_name if dataset_name is not None and is_on_hub(dataset_name) else None
        tags = [tags] if isinstance(tags, str) else tags or []
        super().create_model_card(model_name or folder.name, on_hub, [*tags, *beside])
        accuracy = self.reward_func_names[self._accuracy_index]
        curves = bool(history) and (self.args.push_to_hub or not self.is_in_train)
        if curves:
            save_history(history, folder, accuracy_reward=accuracy)
        options = self.method_options() | {name: asdict(chosen) for name, chosen in beside.items()}
        options |= {"reward_funcs": self.reward_func_names}
        model = self.accelerator.unwrap_model(self.model)
        facts = TrainingFacts(
            method=self._name,
            options=options | {n: value for n, value in changed_options(self.args).items() if n not in options},
            base_model=describe_model(model.config._name_or_path),
            data=describe_data(dataset_name, self.train_dataset),
            num_processes=self.accelerator.num_processes,
            results=logged_results(history, accuracy, self.eval_dataset),
            beside=list(beside),
            adapter=model.peft_type.value.lower() if isinstance(model, PeftModel) else None,
            curves=curves,
        )
        complete_card(folder / "README.md", facts)

    def _beside(self) -> dict[str, PolicyLoss | DynamicSampling]:
        """What the method is combined with, by the names in `canon_trl.papers`."""
        found: dict[str, PolicyLoss | DynamicSampling] = {}
        if self._gate is not None:
            chosen = self._gate.policy_loss
            found |= {name: chosen for name, kind in POLICY_LOSSES.items() if isinstance(chosen, kind)}
        if self._collector is not None:
            found["dynamic_sampling"] = self._collector.options
        return found

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer.push_to_hub`; an upload that fails loses nothing and says how it is repeated."""
        if not self.args.push_to_hub:  # the repository is still to be made, which may fail as well
            self.save_model(_internal_call=True)
            self.create_model_card(dataset_name=kwargs.get("dataset_name"))
        options = self.args
        repository = self.hub_model_id or options.hub_model_id or Path(options.output_dir).absolute().name
        command = upload_command(
            repository,
            options.output_dir,
            exclude=("_*", f"{PREFIX_CHECKPOINT_DIR}-*"),
            revision=kwargs.get("revision") or options.hub_revision,
            private=bool(options.hub_private_repo),
        )
        with failure_told(options.output_dir, command):
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Once it is whole; transformers asks before, when a checkpoint on the Hub would not do to resume from."""
        if Path(checkpoint_folder, RUN_OPTIONS).exists():
            self._tell_failed_pushes()
            super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._tell_failed_pushes()

    def _tell_failed_pushes(self) -> None:
        """Warn of uploads in the background that failed, which transformers forgets without a word."""
        push = getattr(self, "push_in_progress", None)
        for job in push.jobs if push is not None else []:
            if job.done() and job.exception() is not None:
                logger.warning("a checkpoint was not uploaded, training goes on: %s", job.exception())
        if push is not None:
            push.jobs = [job for job in push.jobs if not job.done()]

"""The hook that TRL lacks: rewards become advantages, and advantages become a loss, in functions of your own."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from trl import GRPOConfig

from canon_trl.advantages import STAGE
from canon_trl.config.checks import (
    PER_TOKEN,
    check_dynamic_sampling,
    check_shrink,
    one_rollout_a_step,
)
from canon_trl.config.controllers import by_knob, check_controllers
from canon_trl.config.loss_stages import LossStages, check_loss_stages, find_policy_loss
from canon_trl.config.sampler import (
    check_generation_kwargs,
    records_generation,
    samples_the_policy,
    trl_scores,
)
from canon_trl.config.specs import find_all
from canon_trl.controllers import STAGE as CONTROLLER
from canon_trl.guards.collapse import Collapse
from canon_trl.guards.constant_rewards import ConstantRewards
from canon_trl.guards.failures import guarded_reward
from canon_trl.guards.reward_names import check_accuracy_reward, distinct_names
from canon_trl.hook.data_checks import (
    check_chat_template,
    check_data,
    check_model_names,
    check_reward_templates,
    named_processing_class,
)
from canon_trl.hook.epoch_ends import EpochEnds
from canon_trl.hook.jit_checkpoint import write_at_step_begin
from canon_trl.hook.logs import Logs
from canon_trl.hook.not_finite import NotFinite
from canon_trl.hook.policy_rewards import (
    check_alone,
    check_policy_rewards,
    check_recorded,
    telling_metrics,
    token_inputs_of,
    unscored,
)
from canon_trl.hook.publishing import Publishing
from canon_trl.hook.reference_state import check_reference
from canon_trl.hook.resampling import Collected
from canon_trl.hook.resuming import Resuming
from canon_trl.hook.rollout import Rollouts
from canon_trl.hook.shrunken_steps import LeftOut, ShrunkenSteps
from canon_trl.hook.whole_groups import WholeGroups
from canon_trl.loss_terms import STAGE as LOSS_TERM
from canon_trl.method import find
from canon_trl.metrics import ResponseMetric, get_metrics, token_inputs
from canon_trl.policy_losses import OnTRL
from canon_trl.policy_rewards import PolicyReward
from canon_trl.sampling import DynamicSampling, PromptStream
from canon_trl.sampling.group_collector import GroupCollector
from canon_trl.token_advantages import STAGE as TOKEN_ADVANTAGE


class PluggableGRPOTrainer(Publishing, Resuming, Logs, NotFinite, WholeGroups, Rollouts):
    """[`~trl.GRPOTrainer`] with the step from rewards to advantages replaced by a function.

    Beyond that it saves the rollout in flight with every checkpoint, so that a resumed run continues as if it had
    never stopped, where TRL would throw the rollout away.

    Args:
        model, reward_funcs, args, train_dataset, eval_dataset, **trl_kwargs: as for [`~trl.GRPOTrainer`].
        advantage_estimator: a function, called on every rank, whose positional parameters name fields of a
            [`~canon_trl.rollout.Rollout`], or `rollout` for the whole; or a name in `canon_trl.advantages.ESTIMATORS`.
            It returns advantages `(P, G)`, or `(P, G, T)` with T at least `Rollout.width`. Responses without a reward
            get advantage 0 in any case.
        metrics: response metrics that the rollout carries beyond those that the estimator declares, by name; `None`
            stands for the random metric.
        policy_rewards: rewards from the policy itself, see `canon_trl.policy_rewards`; with one, `reward_funcs` may be
            `None`.
        accuracy_reward: name of the reward function behind `Rollout.accuracy`; default the first.
        needs_accuracy: whether an estimator that is handed the whole rollout reads `Rollout.accuracy`; its reward must
            then lie in [0, 1].
        entropy_source: `"generation"`, `"forward"` or `"auto"`, see [`~canon_trl.CANONConfig`].
        token_advantage: what becomes of the advantages of single tokens in every micro-batch: a name in
            `canon_trl.token_advantages.TOKEN_ADVANTAGES`, `{name: options}`, an import path, a function of
            [`~canon_trl.tokens.Tokens`], a `Method`, or a list of these, which act one after the other.
        policy_loss: how the loss differs from TRL's, see `canon_trl.policy_losses`: one of these. A function of your
            own that returns one number is the whole loss.
        loss_term: what is added to the loss, see `canon_trl.loss_terms`: as `token_advantage`.
        controller: what steers a number of the run, see `canon_trl.controllers`: one, or several.
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
        advantage_estimator: Callable[..., Tensor] | str | Mapping[str, Any],
        metrics: Mapping[str, ResponseMetric | None] | None = None,
        policy_rewards: Sequence[PolicyReward] = (),
        accuracy_reward: str | None = None,
        needs_accuracy: bool = False,
        entropy_source: str = "auto",
        token_advantage: Any = None,
        policy_loss: Any = None,
        loss_term: Any = None,
        controller: Any = None,
        dynamic_sampling: DynamicSampling | None = None,
        reward_time_limit: float | None = None,
        resume_with_changes: bool = False,
        **trl_kwargs: Any,
    ) -> None:
        if "loss_function" in trl_kwargs:
            raise TypeError(
                "loss_function of 0.1 is gone: give the function as policy_loss. Its parameters name what it reads of "
                "canon_trl.tokens.Tokens, such as log_probs, ref_log_probs, response_advantages and mask"
            )
        if "reward_range" in trl_kwargs:
            raise TypeError("reward_range of 0.1 is gone: set it on the function, f.reward_range = '[0, 1]'")
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
        check_generation_kwargs(args)
        check_policy_rewards(policy_rewards, train_dataset, eval_dataset, trl_kwargs)
        self._estimator = find(STAGE, advantage_estimator)
        declared = get_metrics(self._estimator.required_metrics) | dict(metrics or {})
        self._response_metrics = {**telling_metrics(policy_rewards), **declared}
        self._trl_scores = trl_scores(args)
        named = set().union(*(token_inputs(metric) for metric in declared.values() if metric is not None))
        self._scored_inputs = frozenset(named & {"entropies", "log_probs"}).union(token_inputs_of(policy_rewards))
        self._stages = LossStages(
            find_all(TOKEN_ADVANTAGE, token_advantage), find_policy_loss(policy_loss), find_all(LOSS_TERM, loss_term)
        ).own()
        check_loss_stages(self._stages, args)
        controllers = find_all(CONTROLLER, controller)
        check_controllers(controllers, args, self._stages)
        self._samples_the_policy = samples_the_policy(args, steered="temperature" in by_knob(controllers))
        if self._stages.step_wide and not self._trl_scores:
            self._scored_inputs |= {"log_probs"}
        self._needs_accuracy = needs_accuracy or "accuracy" in self._estimator.reads
        if entropy_source != "auto" and not self._scored_inputs:
            raise ValueError(
                f"entropy_source={entropy_source!r} would be ignored: none of the metrics {list(declared)}, the "
                "policy rewards and the policy loss reads entropies or log-probabilities of the rollout; leave it at "
                "'auto'"
            )
        records = records_generation(entropy_source, args, trl_kwargs)
        chosen_by_them = dynamic_sampling is not None and bool(token_inputs_of(policy_rewards))
        if chosen_by_them:
            check_recorded(policy_rewards, records=records)
        needed = bool(self._scored_inputs) and (chosen_by_them or not self._trl_scores)
        self._records_generation = records and needed
        self._given_optimizer = trl_kwargs.get("optimizers", (None, None))[0]
        if isinstance(reward_funcs, list):
            reward_funcs = list(reward_funcs)  # which is changed below, and the caller's may go to another trainer
        if policy_rewards and not reward_funcs:
            check_alone(args, needs_accuracy=needs_accuracy)
            reward_funcs = [unscored]
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, **trl_kwargs)
        self._add_policy_rewards(policy_rewards)
        self._collapse = Collapse()
        self._prepare_steering(controllers)
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
        for index, (function, name) in enumerate(zip(self.reward_funcs, self.reward_func_names, strict=True)):
            if not isinstance(function, nn.Module):
                self.reward_funcs[index] = guarded_reward(function, name, self._failures, reward_time_limit)
        self._constant_rewards = ConstantRewards(self.reward_func_names)
        self.add_callback(EpochEnds())
        if args.enable_jit_checkpoint:
            write_at_step_begin(self)
        if args.sync_ref_model:
            check_reference(self.accelerator)
        self._resume_with_changes = resume_with_changes
        if isinstance(self._stages.policy_loss, OnTRL) and not self._stages.policy_loss.clips:
            self.epsilon_low, self.epsilon_high = 1.0, math.inf  # a ratio is never below 0
        self._accuracy_index = self.reward_func_names.index(accuracy_reward) if accuracy_reward else 0
        if dynamic_sampling is not None:
            collector = GroupCollector(
                dynamic_sampling,
                self.accelerator,
                PromptStream(self.train_dataset, seed=args.seed, shuffle=self.shuffle_dataset),
                group_size=self.num_generations,
                accuracy_index=self._accuracy_index,
            )
            self._sampled = Collected(collector)
            if dynamic_sampling.exhausted == "shrink":
                self._left_out = self._shrinking(args)

    def _shrinking(self, args: GRPOConfig) -> LeftOut:
        """How steps make up for the places that dynamic sampling leaves out."""
        if self.loss_type in PER_TOKEN or one_rollout_a_step(args):
            return LeftOut(self.loss_type, self.accelerator)
        if self.aux_loss_enabled:
            raise ValueError(
                f"gradient_accumulation_steps={args.gradient_accumulation_steps} takes micro-batches of several "
                f"rollouts of steps_per_generation={args.steps_per_generation}, whose gradients are scaled together "
                "with those of the router's auxiliary loss; make the latter a multiple of the former, or set "
                "dynamic_sampling_kwargs={'exhausted': 'keep'} or 'error'"
            )
        return ShrunkenSteps(self.loss_type, self.accelerator)

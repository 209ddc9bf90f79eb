"""The hook that TRL is missing: your own functions turn rewards into advantages, and advantages into a loss."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from trl import GRPOConfig

from canon_trl.advantages import STAGE
from canon_trl.config.checks import check_dynamic_sampling, check_shrink
from canon_trl.config.controllers import by_knob, check_controllers
from canon_trl.config.loss_stages import LossStages, check_loss_stages, find_policy_loss
from canon_trl.config.policy_rewards import check_two_values
from canon_trl.config.sampler import (
    can_share_prefix,
    check_generation_kwargs,
    check_sampler,
    records_generation,
    samples_the_policy,
    trl_scores,
)
from canon_trl.config.specs import find_all
from canon_trl.controllers import STAGE as CONTROLLER
from canon_trl.evaluation.progress import replace_progress
from canon_trl.evaluation.run_report import RunReport
from canon_trl.guards.collapse import Collapse
from canon_trl.guards.constant_rewards import ConstantRewards
from canon_trl.guards.failures import guarded_reward
from canon_trl.guards.reward_names import check_accuracy_reward, distinct_names
from canon_trl.hook.data_checks import as_list, check_inputs
from canon_trl.hook.epoch_ends import EpochEnds
from canon_trl.hook.jit_checkpoint import write_at_step_begin
from canon_trl.hook.logs import Logs
from canon_trl.hook.not_finite import NotFinite
from canon_trl.hook.policy_rewards import (
    check_policy_rewards,
    check_recorded,
    check_without_reward_funcs,
    choose_extractor,
    collapse_metrics,
    score_nothing,
    token_inputs_of,
)
from canon_trl.hook.publishing import Publishing
from canon_trl.hook.reference_state import check_reference
from canon_trl.hook.resampling import CollectedBatches
from canon_trl.hook.resuming import Resuming
from canon_trl.hook.rollout import Rollouts
from canon_trl.hook.shared_prefix import sampler_obstacles
from canon_trl.hook.shrunken_steps import check_terms_can_shrink, leaves_out, make_weighting
from canon_trl.hook.vllm_server import SameServer, check_server
from canon_trl.hook.whole_groups import WholeGroups
from canon_trl.loss_terms import STAGE as LOSS_TERM
from canon_trl.method import find
from canon_trl.metrics import ResponseMetric, get_metrics, token_inputs
from canon_trl.policy_losses import OnTRL
from canon_trl.policy_rewards import PolicyReward
from canon_trl.policy_rewards.answers import AnswerExtractor
from canon_trl.sampling import DynamicSampling, PromptStream
from canon_trl.sampling.group_collector import GroupCollector
from canon_trl.token_advantages import STAGE as TOKEN_ADVANTAGE
from canon_trl.trl_release import FUSED_HEAD


class PluggableGRPOTrainer(Publishing, Resuming, Logs, NotFinite, WholeGroups, Rollouts):
    """[`~trl.GRPOTrainer`] with the step from rewards to advantages replaced by a function.

    It also saves an unfinished rollout with every checkpoint, so that a resumed run continues as if it had never
    stopped; TRL discards that rollout.

    Args:
        model, reward_funcs, args, train_dataset, eval_dataset, **trl_kwargs: as for [`~trl.GRPOTrainer`].
        advantage_estimator: a function whose positional parameters name fields of a
            [`~canon_trl.rollout.Rollout`], or `rollout` for all of it; or a name in
            `canon_trl.advantages.ESTIMATORS`. Every rank calls it. It returns advantages `(P, G)`, or `(P, G, T)` with
            T at least `Rollout.width`. Responses without a reward always get advantage 0.
        metrics: response metrics that the rollout carries in addition to those that the estimator declares, by name;
            `None` is the random metric.
        policy_rewards: rewards from the policy itself, see `canon_trl.policy_rewards`; with one, `reward_funcs` may be
            `None`.
        answer_extractor: finds the answer in a response's text, for policy rewards that compare answers: a function,
            an import path or a name, see [`~canon_trl.config.StagesConfig`].
        accuracy_reward: name of the reward function that `Rollout.accuracy` is computed from; default the first.
        needs_accuracy: whether an estimator that receives the whole rollout reads `Rollout.accuracy`; its reward must
            then lie in [0, 1].
        entropy_source: `"generation"`, `"forward"` or `"auto"`, see [`~canon_trl.CANONConfig`].
        rollout_sampler: `"auto"`, `"shared_prefix"` or `"generate"`, see [`~canon_trl.config.RunConfig`].
        token_advantage: changes the advantages of single tokens in every micro-batch: a name in
            `canon_trl.token_advantages.TOKEN_ADVANTAGES`, `{name: options}`, an import path, a function of
            [`~canon_trl.tokens.Tokens`], a `Method`, or a list of these, which act in this order.
        policy_loss: changes or replaces TRL's loss, see `canon_trl.policy_losses`; one of the same kinds of values.
            A function that returns one number replaces the loss.
        loss_term: is added to the loss, see `canon_trl.loss_terms`; takes the same values as `token_advantage`.
        controller: changes a setting during the run, see `canon_trl.controllers`; takes the same values.
        dynamic_sampling: how to replace groups that teach nothing, see `canon_trl.sampling`; default not at all.
        reward_time_limit: seconds that one call of a reward function may take; default no limit.
        resume_with_changes: whether to resume from a checkpoint that was made with other options; default no.

    Raises:
        ValueError: as early as possible, usually before a model is loaded: an unknown reward name, an entropy source
            that the setting does not allow, data without prompts or with invalid ones, conversations without a chat
            template, a model that does not exist, a vLLM server of another model. The prompts of a stream are checked
            as they come. At the first rollout: a metric that is not finite, a required accuracy outside [0, 1],
            advantages of the wrong shape or not finite. From `train`: a checkpoint that is incomplete or was made with
            other options, an output folder of another run.
        ConnectionError: no vLLM server is ready at the given address in time.
        TypeError, ValueError, TimeoutError: a reward function that returns something other than numbers, a wrong
            count or an infinity, or that exceeds its time limit. What a reward function or a metric raises on one rank
            is raised on all.
        FloatingPointError: weights, log-probabilities, the loss or gradients that are not finite, if possible before
            they have changed a weight; names the step and the tensor.
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
        answer_extractor: AnswerExtractor | str | None = None,
        accuracy_reward: str | None = None,
        needs_accuracy: bool = False,
        entropy_source: str = "auto",
        rollout_sampler: str = "auto",
        token_advantage: Any = None,
        policy_loss: Any = None,
        loss_term: Any = None,
        controller: Any = None,
        dynamic_sampling: DynamicSampling | None = None,
        reward_time_limit: float | None = None,
        resume_with_changes: bool = False,
        **trl_kwargs: Any,
    ) -> None:
        reward_funcs = as_list(reward_funcs)
        check_removed_options(trl_kwargs)
        check_inputs(model, reward_funcs, args, train_dataset, eval_dataset, accuracy_reward, trl_kwargs)
        check_dynamic_sampling(dynamic_sampling is not None, trl_kwargs)
        check_shrink(dynamic_sampling, args)
        check_generation_kwargs(args)
        check_policy_rewards(policy_rewards, train_dataset, eval_dataset, trl_kwargs)
        self._answer_extractor = choose_extractor(answer_extractor, policy_rewards)
        self._estimator = find(STAGE, advantage_estimator)
        self._needs_accuracy = needs_accuracy or "accuracy" in self._estimator.reads
        self._choose_metrics(metrics or {}, policy_rewards)
        self._choose_loss_stages(token_advantage, policy_loss, loss_term, args)
        check_terms_can_shrink(self._stages, dynamic_sampling, args)
        check_two_values(policy_rewards, self._estimator, self._stages)
        controllers = find_all(CONTROLLER, controller)
        check_controllers(controllers, args, self._stages)
        self._choose_entropy_source(
            entropy_source,
            args,
            trl_kwargs,
            steers_temperature="temperature" in by_knob(controllers),
            choosing_rewards=policy_rewards if dynamic_sampling is not None else (),
        )
        shares_prefix = can_share_prefix(rollout_sampler, args, trl_kwargs)
        if policy_rewards and not reward_funcs:
            check_without_reward_funcs(args, needs_accuracy=needs_accuracy)
            reward_funcs = [score_nothing]
        asks_server = args.use_vllm and args.vllm_mode == "server" and args.process_index == 0
        if asks_server:
            check_server(model, args, trl_kwargs)
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, **trl_kwargs)
        if asks_server:
            self._same_server = SameServer(self.vllm_generation.vllm_client)
        if shares_prefix:
            check_sampler(rollout_sampler, sampler_obstacles(self, self.accelerator.unwrap_model(self.model)))
            self._rollout_sampler = rollout_sampler
        self._add_policy_rewards(policy_rewards)
        self._prepare_steering(controllers)
        self._prepare_rewards(accuracy_reward, reward_time_limit)
        self._prepare_sampling(dynamic_sampling)
        self._prepare_loss(dynamic_sampling)
        self._prepare_checkpoints()
        replace_progress(self.callback_handler.callbacks)
        self.add_callback(RunReport(self))
        self._given_optimizer = trl_kwargs.get("optimizers", (None, None))[0]
        self._resume_with_changes = resume_with_changes

    def _choose_metrics(
        self, given: Mapping[str, ResponseMetric | None], policy_rewards: Sequence[PolicyReward]
    ) -> None:
        """Find the response metrics, and which token values they, the estimator and the policy rewards read."""
        declared = get_metrics(self._estimator.required_metrics) | dict(given)
        self._declared_metrics = tuple(name for name, metric in declared.items() if metric is not None)
        self._response_metrics = {**collapse_metrics(policy_rewards), **declared}
        metrics = [metric for metric in declared.values() if metric is not None]
        read = set(self._estimator.reads).union(*(token_inputs(metric) for metric in metrics))
        self._scored_inputs = frozenset(read & {"entropies", "log_probs"}).union(token_inputs_of(policy_rewards))

    def _choose_loss_stages(self, token_advantage: Any, policy_loss: Any, loss_term: Any, args: GRPOConfig) -> None:
        """Find the methods that act in the loss."""
        self._stages = LossStages(
            find_all(TOKEN_ADVANTAGE, token_advantage), find_policy_loss(policy_loss), find_all(LOSS_TERM, loss_term)
        ).copy()
        check_loss_stages(self._stages, args)
        self._trl_scores = trl_scores(args)
        if self._stages.step_wide and not self._trl_scores:
            self._scored_inputs |= {"log_probs"}

    def _choose_entropy_source(
        self,
        entropy_source: str,
        args: GRPOConfig,
        trl_kwargs: Mapping[str, Any],
        *,
        steers_temperature: bool,
        choosing_rewards: Sequence[PolicyReward],
    ) -> None:
        """Decide whether token values are recorded while responses are generated.

        Args:
            entropy_source, args, trl_kwargs: of the constructor.
            steers_temperature: whether a controller moves the temperature.
            choosing_rewards: policy rewards that decide which groups dynamic sampling keeps.
        """
        self._samples_the_policy = samples_the_policy(args, steered=steers_temperature)
        if entropy_source != "auto" and not self._scored_inputs:
            raise ValueError(
                f"entropy_source={entropy_source!r} would be ignored: none of the metrics "
                f"{[*self._response_metrics]}, the estimator, the policy rewards and the policy loss reads entropies "
                "or log-probabilities of the rollout; leave it at 'auto'"
            )
        records = records_generation(entropy_source, args, trl_kwargs)
        check_recorded(choosing_rewards, records=records)
        needed = bool(token_inputs_of(choosing_rewards)) or (bool(self._scored_inputs) and not self._trl_scores)
        self._records_generation = records and needed

    def _prepare_rewards(self, accuracy_reward: str | None, time_limit: float | None) -> None:
        """Name the reward functions, and guard those of the user."""
        self.reward_func_names = distinct_names(self.reward_func_names)
        check_accuracy_reward(accuracy_reward, self.reward_func_names)
        self._accuracy_index = self.reward_func_names.index(accuracy_reward) if accuracy_reward else 0
        for index, (function, name) in enumerate(zip(self.reward_funcs, self.reward_func_names, strict=True)):
            if not isinstance(function, nn.Module):
                self.reward_funcs[index] = guarded_reward(function, name, self._failures, time_limit)
        self._collapse = Collapse()
        self._constant_rewards = ConstantRewards(self.reward_func_names)

    def _prepare_sampling(self, options: DynamicSampling | None) -> None:
        """Set the sampler's options, and how batches are filled."""
        if not self.use_vllm and self.min_p is None and self.model.generation_config.min_p is not None:
            self.generation_config.min_p = 0.0  # at None, generate would use the model's min_p
        if options is not None:
            prompts = PromptStream(self.train_dataset, seed=self.args.seed, shuffle=self.shuffle_dataset)
            collector = GroupCollector(
                options,
                self.accelerator,
                prompts,
                group_size=self.num_generations,
                accuracy_index=self._accuracy_index,
            )
            self._batch_source = CollectedBatches(collector)

    def _prepare_loss(self, options: DynamicSampling | None) -> None:
        """Set what the loss clips, and how it weighs a batch without some of its responses."""
        chosen = self._stages.policy_loss
        if isinstance(chosen, OnTRL) and not chosen.clips:
            self.epsilon_low = 1.0  # a ratio is never below 0
        if isinstance(chosen, OnTRL) and not (chosen.clips and chosen.clips_high):
            self.epsilon_high = math.inf
        if self._stages.differentiates_entropies and not FUSED_HEAD:
            self._entropy_bonus_enabled = True  # for the gradient of the entropies; its weight stays as it is
        if leaves_out(self._stages, options):
            self._weighting = make_weighting(self.args, self.accelerator, routing_loss=self.aux_loss_enabled)

    def _prepare_checkpoints(self) -> None:
        """Write checkpoints only where a run can resume."""
        self.add_callback(EpochEnds())
        if self.args.enable_jit_checkpoint:
            write_at_step_begin(self)
        if self.args.sync_ref_model:
            check_reference(self.accelerator)


def check_removed_options(trl_kwargs: Mapping[str, Any]) -> None:
    """Reject arguments of 0.1, and name their replacements."""
    if "loss_function" in trl_kwargs:
        raise TypeError(
            "loss_function was removed after 0.1: pass the function as policy_loss. Its parameters name the fields of "
            "canon_trl.tokens.Tokens that it reads, such as log_probs, ref_log_probs, response_advantages and mask"
        )
    if "reward_range" in trl_kwargs:
        raise TypeError("reward_range was removed after 0.1: set it on the function, f.reward_range = '[0, 1]'")

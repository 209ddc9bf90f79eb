"""The config fields that choose the methods of each stage."""

import logging
import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from canon_trl.advantages import STAGE as ADVANTAGES
from canon_trl.config.checks import check_shrink, check_trl_estimator, estimator_of_trl
from canon_trl.config.controllers import check_controllers
from canon_trl.config.help_texts import with_help
from canon_trl.config.loss_stages import LossStages, check_loss_stages, find_policy_loss
from canon_trl.config.policy_rewards import check_two_values, find_policy_rewards
from canon_trl.config.run import RunConfig
from canon_trl.config.run_length import rollouts_in_run
from canon_trl.config.specs import as_names, find_all
from canon_trl.controllers import STAGE as CONTROLLER
from canon_trl.loss_terms import STAGE as LOSS_TERM
from canon_trl.method import Method, find
from canon_trl.metrics import get_metrics
from canon_trl.options import check_options
from canon_trl.policy_losses import OnTRL, Whole
from canon_trl.policy_rewards import PolicyReward
from canon_trl.policy_rewards.answers import find_extractor
from canon_trl.sampling import DynamicSampling
from canon_trl.token_advantages import STAGE as TOKEN_ADVANTAGE

logger = logging.getLogger(__name__)

# Fields that hold one method, with options in `..._kwargs`, and fields that hold one or several methods.
ONE_METHOD = ("advantage_estimator", "policy_loss")
METHODS = ("policy_reward", "token_advantage", "loss_term", "controller")
OPTIONS = ("advantage_estimator_kwargs", "policy_loss_kwargs", "dynamic_sampling_kwargs")


@with_help
@dataclass
class StagesConfig(RunConfig):
    r"""
    [`RunConfig`] with fields that choose the methods between rewards and gradients.

    The config rejects options that the chosen method does not take, and options that would be ignored.

    Args:
        > Parameters that choose the rewards

        policy_reward: A name: `"rent"`, `"em_rl_sequence"`, `"em_rl_token"`, `"self_consistency"`, `"majority_vote"`;
            `{name: options}` with the reward's `weight` among the options; an import path `"package.module:function"`;
            or a list or mapping of several. These rewards come from the policy itself and add to those of the reward
            functions. Default: none.
        answer_extractor: How to find the answer in a response, for policy rewards that compare answers:
            `"boxed_or_number"` (the content of the last `\boxed{}`, else the last number), `"math_verify"`, or an
            import path `"package.module:function"` of a function from text to text or `None`. Default:
            `"boxed_or_number"`.

        > Parameters that choose the advantage

        advantage_estimator: A name: `"canon"`, `"grpo"`, `"grpo_batch"`, `"gdpo"`, `"dr_grpo"`, `"rloo"`,
            `"reinforce_pp_baseline"`, `"opo"`, `"a_grae"`, `"maxrl"`, `"grpo_s"`, `"gtpo"`, `"pass_at_k"`, `"pshw"`,
            `"stcr"`, `"psr"`, `"nsr"`, `"w_reinforce"`, `"mix"`; `{name: options}`; or an import path
            `"package.module:function"` of a function that reads a [`~canon_trl.rollout.Rollout`] and returns
            advantages `(P, G)`, or `(P, G, T)`, one per token. `{"mix": {"canon": 0.5, "opo": 0.5}}` is a weighted
            sum. Unless you choose another one, TRL's `scale_rewards="batch"` chooses `"grpo_batch"`, and
            `multi_objective_aggregation="normalize_then_sum"` chooses `"gdpo"`.
        advantage_estimator_kwargs: Options of the estimator, such as `{"eps": 1e-4}` for `"grpo"`. CANON's options
            are the `canon_*` fields.
        accuracy_reward: Name of the reward function that measures accuracy in [0, 1], for `Rollout.accuracy` and the
            accuracy schedules. Default: the first one.

        > Parameters that choose the loss

        token_advantage: A name: `"entropy_shaped"`, `"dmmpt"`, `"clip_b"`, `"zero_variance"`; `{name: options}`; an
            import path `"package.module:function"` of a function that reads [`~canon_trl.tokens.Tokens`]; or a list or
            mapping of several, in the order in which they act. Changes the advantage of each token before the loss.
            Default: none.
        loss_term: A name: `"ter"`, `"tea"`, `"dads"`; or as for `token_advantage`. Adds to the loss. Default: none.
        policy_loss: A name: `"clip_cov"`, `"kl_cov"`, `"dppo"`, `"up"`, `"disco"`; or an import path of a function
            that reads [`~canon_trl.tokens.Tokens`] and returns the whole loss. Default: TRL's loss.
        policy_loss_kwargs: Options of the policy loss, such as `{"ratio": 2e-4, "scope": "batch"}` for `"clip_cov"`.

        > Parameters that choose what changes during the run

        controller: A name: `"e3_temperature"`, `"adaptive_clip"`; `{name: options}`; an import path
            `"package.module:function"` of a function or class that makes a [`~canon_trl.controllers.Controller`]; or a
            list or mapping of several. Each changes one setting during the run, based on numbers measured across
            ranks. Default: none.

        > Parameters that choose the groups to train on

        dynamic_sampling: Whether to replace groups that have equal rewards, or an accuracy outside a band, with
            groups of fresh prompts.
        dynamic_sampling_kwargs: Options of dynamic sampling: `max_rounds`, `lower`, `upper` and `exhausted`, see
            [`~canon_trl.sampling.DynamicSampling`].

        > Parameters that control the cost

        entropy_source: Source of the rollout's entropies and log-probabilities if TRL runs no scoring pass itself (it
            does with vLLM and importance-sampling correction, and with several updates per rollout). `"generation"`
            records them from the logits during sampling, `"forward"` runs a forward pass, and `"auto"` records them if
            possible.
    """

    policy_reward: dict[str, Any] | str | list[Any] | None = None
    answer_extractor: str | None = None
    advantage_estimator: dict[str, Any] | str | None = "grpo"
    advantage_estimator_kwargs: dict[str, Any] | str | None = None
    accuracy_reward: str | None = None
    token_advantage: dict[str, Any] | str | list[Any] | None = None
    loss_term: dict[str, Any] | str | list[Any] | None = None
    policy_loss: dict[str, Any] | str | None = None
    policy_loss_kwargs: dict[str, Any] | str | None = None
    controller: dict[str, Any] | str | list[Any] | None = None
    dynamic_sampling: bool = False
    dynamic_sampling_kwargs: dict[str, Any] | str | None = None
    entropy_source: Literal["auto", "generation", "forward"] = "auto"

    _VALID_DICT_FIELDS = [*RunConfig._VALID_DICT_FIELDS, *OPTIONS]

    def __post_init__(self) -> None:
        for name in (*ONE_METHOD, *METHODS, "answer_extractor"):
            setattr(self, name, as_names(getattr(self, name), field=name))
        for name in ONE_METHOD:
            self._split_options(name)
        super().__post_init__()
        self._check_options()
        self.make_policy_rewards()
        if self.answer_extractor is not None:
            find_extractor(self.answer_extractor)
        self._choose_estimator()
        self._check_estimator()
        self._check_loss()
        self._check_dynamic_sampling()

    def make_policy_rewards(self) -> tuple[PolicyReward, ...]:
        """Return the policy rewards with options bound, and their weights."""
        return find_policy_rewards(self.policy_reward)

    def make_estimator(self) -> Method:
        """Return the advantage estimator with options bound."""
        return find(ADVANTAGES, self.advantage_estimator, self.advantage_estimator_kwargs)

    def make_token_advantages(self) -> tuple[Method, ...]:
        """Return the token advantages with options bound."""
        return find_all(TOKEN_ADVANTAGE, self.token_advantage)

    def make_loss_terms(self) -> tuple[Method, ...]:
        """Return the loss terms with options bound."""
        return find_all(LOSS_TERM, self.loss_term)

    def make_controllers(self) -> tuple[Method, ...]:
        """Return the makers of the controllers, with options bound."""
        return find_all(CONTROLLER, self.controller)

    def make_policy_loss(self) -> OnTRL | Whole | None:
        """Return the policy loss with options bound."""
        return find_policy_loss(self.policy_loss, self.policy_loss_kwargs)

    def make_dynamic_sampling(self) -> DynamicSampling | None:
        """Return the options of dynamic sampling, or `None` without it."""
        return DynamicSampling(**self.dynamic_sampling_kwargs) if self.dynamic_sampling else None

    def rollouts(self, prompts: int | None = None) -> int:
        """Count the rollouts of the whole run.

        Args:
            prompts: number of prompts in the dataset; `None` for a stream, which needs `max_steps`. A dataset never
                gives more rollouts than a stream: its epoch may end with an optimiser step that accumulates less.
        """
        per_rollout = self.steps_per_generation * self.num_iterations
        accumulation = self.gradient_accumulation_steps
        per_epoch, steps = self.max_steps * accumulation, self.max_steps
        if prompts is not None:
            per_epoch = prompts * self.num_generations // self.generation_batch_size * per_rollout
            if self.max_steps <= 0:
                steps = math.ceil(self.num_train_epochs * -(-per_epoch // accumulation))
        return rollouts_in_run(steps, per_epoch=per_epoch, accumulation=accumulation, per_rollout=per_rollout)

    def _split_options(self, name: str) -> None:
        """Move the options in a field, `{name: options}`, to its `..._kwargs`."""
        spec, options = getattr(self, name), getattr(self, f"{name}_kwargs")
        if not isinstance(spec, dict) or len(spec) != 1:
            return
        if options:
            raise ValueError(f"{name}={spec!r} and {name}_kwargs={options!r} both give options; set only one")
        ((method, own),) = spec.items()
        setattr(self, name, method)
        setattr(self, f"{name}_kwargs", own)

    def _check_options(self) -> None:
        for name in OPTIONS:
            options = getattr(self, name)
            if options is None:
                setattr(self, name, {})
            elif not isinstance(options, dict) or not all(isinstance(option, str) for option in options):
                raise ValueError(f"{name}={options!r} must be a dict of options by name, or JSON text of one")

    def _choose_estimator(self) -> None:
        """Choose the estimator that options of TRL describe, unless another one is chosen."""
        default = next(option.default for option in fields(self) if option.name == "advantage_estimator")
        described = estimator_of_trl(self)
        if described is not None and self.advantage_estimator in ("grpo", default):
            if self.advantage_estimator != "grpo":
                logger.warning("TRL's options choose advantage_estimator=%r instead of %r", described, default)
            self.advantage_estimator = described

    def _check_estimator(self) -> None:
        method = self.make_estimator()
        get_metrics(method.required_metrics)
        if method.smallest_group > self.num_generations:
            raise ValueError(
                f"advantage_estimator={self.advantage_estimator!r} with {self.advantage_estimator_kwargs} needs "
                f"groups of at least {method.smallest_group} responses, but num_generations={self.num_generations}"
            )
        check_trl_estimator(self, method)

    def _check_loss(self) -> None:
        if self.policy_loss is None and self.policy_loss_kwargs:
            raise ValueError(f"policy_loss_kwargs={self.policy_loss_kwargs} would be ignored: policy_loss is None")
        chosen = self.make_policy_loss()
        stages = LossStages(self.make_token_advantages(), chosen, self.make_loss_terms())
        check_loss_stages(stages, self)
        check_two_values(self.make_policy_rewards(), self.make_estimator(), stages)
        check_controllers(self.make_controllers(), self, stages)
        updates = self.steps_per_generation * self.num_iterations
        if not isinstance(chosen, OnTRL) or (self.use_vllm and "sampling_log_probs" in chosen.reads):
            return  # vLLM samples from a policy that differs a little from the start
        if chosen.acts_on_change and self.gradient_accumulation_steps % updates == 0:
            logger.warning(
                "policy_loss=%r with one update per rollout is the plain policy gradient, since it acts only once the "
                "policy has changed since the rollout; set steps_per_generation or num_iterations for several updates "
                "per rollout",
                chosen.name,
            )

    def _check_dynamic_sampling(self) -> None:
        options = self.dynamic_sampling_kwargs
        if not self.dynamic_sampling and options:
            raise ValueError(f"dynamic_sampling_kwargs={options} would be ignored: dynamic_sampling is False")
        check_options(DynamicSampling, options, where="dynamic_sampling_kwargs: ")
        try:
            made = self.make_dynamic_sampling()
        except ValueError as error:
            raise ValueError(f"dynamic_sampling_kwargs: {error}") from None
        check_shrink(made, self)

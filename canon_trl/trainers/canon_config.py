"""Configuration of [`~canon_trl.CANONTrainer`]."""

import logging
import math
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, get_type_hints

from trl import GRPOConfig

from canon_trl.advantages import OnRollout, check_options, get_estimator
from canon_trl.metrics import METRICS, RANDOM, ResponseMetric, get_metric
from canon_trl.policy_losses import POLICY_LOSSES, PolicyLoss, get_policy_loss
from canon_trl.sampling import DynamicSampling
from canon_trl.schedules import SCHEDULES
from canon_trl.trainers.before_loading import PPO_LOSSES, assignments, check_config, check_policy_loss, check_values
from canon_trl.trainers.run_config import RunConfig
from canon_trl.trainers.run_length import rollouts_in_run
from canon_trl.trainers.shrunken_steps import check_shrink

logger = logging.getLogger(__name__)

ENTROPY_SOURCES = ("auto", "generation", "forward")
ACCURACY_SCHEDULES = ("inter_to_intra", "intra_to_inter")
COSINE_SCHEDULES = ("cosine_inter_to_intra", "cosine_intra_to_inter")
CLIP_HIGHER = 0.28  # a field that holds this very object was not set
CISPO_CAP = 5.0
OPTIONS = ("advantage_estimator_kwargs", "policy_loss_kwargs", "dynamic_sampling_kwargs")

# The reference implementation's names for its estimators. Its `alpha` is canon_alpha, its `_lambda` is canon_mu.
PRESETS: dict[str, dict[str, Any]] = {
    "dr_entropy_token_budget": {"canon_metric": "entropy"},
    "dr_length_on_mean": {"canon_metric": "length"},
    # The line in force in the reference is mu = accuracy; its alternative is canon_mu_schedule="inter_to_intra".
    "dr_entropy_token_budget_annel": {"canon_metric": "entropy", "canon_mu_schedule": "intra_to_inter"},
    "dr_entropy_token_budget_cosine_restart": {
        "canon_metric": "entropy",
        "canon_mu_schedule": "cosine_intra_to_inter",
    },
    "dr_entropy_token_budget_cosine_restart_r": {
        "canon_metric": "entropy",
        "canon_mu_schedule": "cosine_inter_to_intra",
    },
    "dr_random": {"canon_metric": "random"},
}


@dataclass
class CANONConfig(RunConfig):
    r"""
    Configuration class for the [`CANONTrainer`].

    It has every field of [`~trl.GRPOConfig`] and [`~canon_trl.trainers.RunConfig`], and those below. An option that
    the chosen estimator, metric or schedule does not honour is refused, never ignored.

    Args:
        > Parameters that choose the advantage

        advantage_estimator (`str`, *optional*, defaults to `"canon"`):
            A name in `canon_trl.advantages.ESTIMATORS` (`"canon"`, `"grpo"`, `"dr_grpo"`, `"rloo"`,
            `"reinforce_pp_baseline"`, `"opo"`, `"a_grae"`, `"psr"`, `"nsr"`, `"w_reinforce"`) or an import path
            `"package.module:function"` to a function of a [`~canon_trl.rollout.Rollout`] that returns `(P, G)`, or
            `(P, G, T)` with an advantage for each token.
        advantage_estimator_kwargs (`dict`, *optional*):
            Options of the estimator, such as `{"eps": 1e-4}` for `"grpo"`. CANON's own are the `canon_*` fields.
        accuracy_reward (`str`, *optional*):
            Name of the reward function that measures accuracy in [0, 1]. Default: the first one. It feeds
            `Rollout.accuracy` and with it the accuracy schedules.

        > Parameters that choose the policy loss

        policy_loss (`str`, *optional*):
            A name in `canon_trl.policy_losses.POLICY_LOSSES`: `"clip_cov"` or `"kl_cov"`. Default: TRL's loss as it
            is.
        policy_loss_kwargs (`dict`, *optional*):
            Its options, such as `{"ratio": 2e-4, "scope": "batch"}` for `"clip_cov"`, `{"fraction": 0.002, "coef":
            1.0}` for `"kl_cov"`.

        > Parameters that choose the groups that are trained on

        dynamic_sampling (`bool`, *optional*, defaults to `False`):
            Whether groups without spread, or outside a band of accuracy, are replaced by groups of fresh prompts.
        dynamic_sampling_kwargs (`dict`, *optional*):
            Its options `max_rounds`, `lower`, `upper` and `exhausted`, see [`~canon_trl.sampling.DynamicSampling`].

        > Parameters that control CANON

        canon_metric (`str`, *optional*, defaults to `"entropy"`):
            What the responses to a prompt are regrouped by: `"entropy"`, `"length"`, `"surprisal"`, `"random"` or an
            import path to a metric, see `canon_trl.metrics`.
        canon_mu (`float`, *optional*, defaults to `1.0`):
            Weight of the inter-group comparison in [0, 1] (Eq. 5 of the paper): 1 is CANON-Inter, 0 CANON-Intra, 0.5
            with even groups and `canon_alpha=1` Dr.GRPO.
        canon_mu_schedule (`str`, *optional*, defaults to `"constant"`):
            A name in `canon_trl.schedules.SCHEDULES`: `"constant"`, `"inter_to_intra"` (mu = 1 - accuracy),
            `"intra_to_inter"` (mu = accuracy), `"cosine_inter_to_intra"`, `"cosine_intra_to_inter"`.
        canon_alpha (`float`, *optional*, defaults to `1.0`):
            Factor on the rewards of `canon_alpha_group` in the inter-group comparison (Eq. 9 of the ICLR text, Eq. 8
            in the reference's README). Below 1 it prefers short responses (length) or exploration (entropy).
        canon_alpha_group (`str`, *optional*):
            `"higher"` or `"lower"`. Default: `"higher"` for the metric `"length"`, `"lower"` for every other.
        canon_cosine_warmup_ratio (`float`, *optional*, defaults to `0.2`):
            Share of the rollouts in which the cosine schedules warm up, in [0, 1).
        canon_cosine_cycles (`int`, *optional*, defaults to `3`):
            Number of cosine cycles after the warm-up.
        canon_cosine_low (`float`, *optional*):
            Lowest value of the curve. Default, as in the reference: 0.4 of the inter-group weight for
            `"cosine_inter_to_intra"`, 0 of the intra-group weight for `"cosine_intra_to_inter"`.
        canon_cosine_high (`float`, *optional*):
            Highest value of the curve. Default, as in the reference: 1 and 0.6.

        > Parameters that control the cost

        entropy_source (`str`, *optional*, defaults to `"auto"`):
            Where the entropies and log-probabilities of a metric come from if TRL scores the rollout in no pass of its
            own (it does with vLLM and importance-sampling correction, and with several updates a rollout).
            `"generation"`: recorded from the logits that are sampled from; `"forward"`: a forward pass of their own;
            `"auto"`: the first where it is possible, else the second.

    > [!NOTE]
    > These parameters have default values different from [`~trl.GRPOConfig`]:
    > - `loss_type`: Defaults to `"dr_grpo"` instead of `"dapo"`.
    > - `scale_rewards`: Defaults to `"none"` instead of `"group"`.
    > - `epsilon_high`: Defaults to `0.28` instead of `None` where the loss clips the ratio of a token as PPO does
    >   (`loss_type` `"grpo"`, `"bnpo"`, `"dapo"` or `"dr_grpo"`, `importance_sampling_level="token"`), and to `5.0`,
    >   which TRL recommends, with `loss_type="cispo"`, whose ratios it caps. Elsewhere it is TRL's `None`.
    > - `num_generations`, `per_device_train_batch_size`, `per_device_eval_batch_size`: Default to `16` instead of `8`.
    """

    loss_type: str = field(
        default="dr_grpo",
        metadata={"help": "Specifies the loss formulation, see `GRPOConfig`. CANON is defined with `dr_grpo`."},
    )
    scale_rewards: str = field(
        default="none",
        metadata={"help": "TRL's scaling of advantages, which the estimator replaces: `none`, or `group` for grpo."},
    )
    epsilon_high: float | None = field(
        default=CLIP_HIGHER,
        metadata={"help": "Upper-bound epsilon value for clipping (clip-higher)."},
    )
    num_generations: int | None = field(
        default=16,
        metadata={"help": "Number of responses to sample for each prompt, the size G of a prompt group."},
    )
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "Responses per device and forward pass in training."}
    )
    per_device_eval_batch_size: int = field(
        default=16, metadata={"help": "Responses per device and forward pass in evaluation."}
    )

    advantage_estimator: str = field(
        default="canon",
        metadata={"help": "Name of the advantage estimator, or an import path `package.module:function`."},
    )
    advantage_estimator_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of the advantage estimator."}
    )
    accuracy_reward: str | None = field(
        default=None,
        metadata={"help": "Name of the reward function that measures accuracy in [0, 1]. Default: the first one."},
    )
    policy_loss: str | None = field(
        default=None, metadata={"help": "What single tokens weigh in the loss: `clip_cov` or `kl_cov`."}
    )
    policy_loss_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of the policy loss."}
    )
    dynamic_sampling: bool = field(
        default=False, metadata={"help": "Replace groups that teach nothing by groups of fresh prompts."}
    )
    dynamic_sampling_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of dynamic sampling: max_rounds, lower, upper, exhausted."}
    )
    canon_metric: str = field(
        default="entropy",
        metadata={
            "help": "What responses are regrouped by: `entropy`, `length`, `surprisal`, `random` or an import path."
        },
    )
    canon_mu: float = field(
        default=1.0,
        metadata={"help": "Weight of the inter-group comparison in [0, 1]; 0.5 is Dr.GRPO."},
    )
    canon_mu_schedule: str = field(
        default="constant",
        metadata={
            "help": "Schedule of mu: `constant`, `inter_to_intra`, `intra_to_inter`, `cosine_inter_to_intra` or "
            "`cosine_intra_to_inter`."
        },
    )
    canon_alpha: float = field(
        default=1.0,
        metadata={"help": "Factor on the rewards of `canon_alpha_group` in the inter-group comparison."},
    )
    canon_alpha_group: str | None = field(
        default=None,
        metadata={"help": "`higher` or `lower`. Default: `higher` for the metric length, `lower` for every other."},
    )
    canon_cosine_warmup_ratio: float = field(
        default=0.2, metadata={"help": "Share of the rollouts in which the cosine schedules warm up."}
    )
    canon_cosine_cycles: int = field(default=3, metadata={"help": "Number of cosine cycles after the warm-up."})
    canon_cosine_low: float | None = field(
        default=None, metadata={"help": "Lowest value of the cosine curve. Default: the reference's 0.4 or 0."}
    )
    canon_cosine_high: float | None = field(
        default=None, metadata={"help": "Highest value of the cosine curve. Default: the reference's 1 or 0.6."}
    )
    entropy_source: str = field(
        default="auto",
        metadata={
            "help": "Where token entropies come from if TRL runs no scoring pass: `generation`, `forward` or `auto`."
        },
    )

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, *OPTIONS]

    def __post_init__(self) -> None:
        if self.epsilon_high is CLIP_HIGHER:
            self._settle_epsilon_high()
        check_config(self)
        self._check_groups()
        super().__post_init__()
        self._check_options()
        self._check_estimator()
        self._check_policy_loss()
        self._check_dynamic_sampling()
        self._check_canon()

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "CANONConfig":
        """The configuration of an estimator of the reference implementation, by its name there.

        Args:
            name: `"dr_entropy_token_budget"`, `"dr_length_on_mean"`, `"dr_entropy_token_budget_annel"`,
                `"dr_entropy_token_budget_cosine_restart"`, `"dr_entropy_token_budget_cosine_restart_r"`,
                `"dr_random"`.
            overrides: any field; the reference's `alpha` is `canon_alpha` and its `_lambda` is `canon_mu`.

        Raises:
            ValueError: the name is unknown, or a value is.
        """
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is unknown; choose one of {sorted(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    def mu_schedule(self) -> partial:
        """The schedule `(step, total_steps, accuracy) -> mu` with its options bound."""
        schedule = SCHEDULES[self.canon_mu_schedule]
        if self.canon_mu_schedule == "constant":
            return partial(schedule, mu=self.canon_mu)
        if self.canon_mu_schedule in COSINE_SCHEDULES:
            bounds = {"low": self.canon_cosine_low, "high": self.canon_cosine_high}
            return partial(
                schedule,
                warmup_ratio=self.canon_cosine_warmup_ratio,
                cycles=self.canon_cosine_cycles,
                **{name: bound for name, bound in bounds.items() if bound is not None},
            )
        return partial(schedule)

    def make_policy_loss(self) -> PolicyLoss | None:
        """The policy loss with its options bound."""
        if self.policy_loss is None:
            return None
        clip = {"epsilon_low": self.epsilon, "epsilon_high": self.epsilon_high}
        if self.epsilon_high is None:  # then TRL clips at epsilon on both sides
            clip["epsilon_high"] = self.epsilon
        return get_policy_loss(self.policy_loss, self.policy_loss_kwargs, **clip)

    def make_dynamic_sampling(self) -> DynamicSampling | None:
        """The options of dynamic sampling, or `None` without it."""
        return DynamicSampling(**self.dynamic_sampling_kwargs) if self.dynamic_sampling else None

    def alpha_group(self, metric: ResponseMetric | None) -> str:
        """The half whose rewards alpha multiplies; where it is not set, that of the metric in use."""
        return self.canon_alpha_group or ("higher" if metric is METRICS["length"] else "lower")

    def rollouts(self, prompts: int | None = None) -> int:
        """Rollouts of the whole run.

        Args:
            prompts: of the dataset; `None` for a stream, which has no length, and then `max_steps` must be set. No
                dataset makes more of them: an epoch may end with an optimiser step on less than a whole
                accumulation.
        """
        a_rollout = self.steps_per_generation * self.num_iterations
        accumulation = self.gradient_accumulation_steps
        an_epoch, steps = self.max_steps * accumulation, self.max_steps
        if prompts is not None:
            an_epoch = prompts * self.num_generations // self.generation_batch_size * a_rollout
            if self.max_steps < 0:
                steps = math.ceil(self.num_train_epochs * -(-an_epoch // accumulation))
        return rollouts_in_run(steps, an_epoch=an_epoch, accumulation=accumulation, a_rollout=a_rollout)

    def changed_canon_fields(self) -> list[str]:
        """The `canon_*` fields that differ from their defaults."""
        return [
            option.name
            for option in fields(self)
            if option.name.startswith("canon_") and getattr(self, option.name) != option.default
        ]

    def _settle_epsilon_high(self) -> None:
        """Where it was not set: 0.28 is meant for the clipped ratio of a token, and elsewhere has another meaning."""
        if self.loss_type == "cispo":
            self.epsilon_high = CISPO_CAP
        elif self.loss_type not in PPO_LOSSES or self.importance_sampling_level != "token":
            self.epsilon_high = None

    def _check_groups(self) -> None:
        if self.num_generations is None or self.num_generations < 2:
            raise ValueError(
                f"num_generations={self.num_generations!r} must be at least 2: an advantage compares the responses to "
                "one prompt"
            )

    def _check_options(self) -> None:
        for name in OPTIONS:
            options = getattr(self, name)
            if options is None:
                setattr(self, name, {})
            elif not isinstance(options, dict) or not all(isinstance(option, str) for option in options):
                raise ValueError(f"{name}={options!r} must be a dict of options by name, or JSON of one")

    def _check_estimator(self) -> None:
        estimator = get_estimator(self.advantage_estimator)
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r} is an advantage estimator of TRL's "
                "own, which advantage_estimator replaces; it must be 'sum_then_normalize'"
            )
        allowed_scaling = ("none", "group") if self.advantage_estimator == "grpo" else ("none",)
        if self.scale_rewards not in allowed_scaling:
            raise ValueError(
                f"scale_rewards={self.scale_rewards!r} is TRL's own scaling of advantages, which "
                f"advantage_estimator={self.advantage_estimator!r} replaces; it must be one of {allowed_scaling}"
            )
        if self.advantage_estimator == "canon":
            if self.advantage_estimator_kwargs:
                raise ValueError(
                    f"advantage_estimator_kwargs={self.advantage_estimator_kwargs} must be empty for 'canon': its "
                    "options are the canon_* fields"
                )
        else:
            check_options(estimator, self.advantage_estimator_kwargs, field="advantage_estimator_kwargs")
            if isinstance(estimator, OnRollout):
                types = get_type_hints(estimator.function)
                check_values(self.advantage_estimator_kwargs, types, where="advantage_estimator_kwargs: ")
            if changed := self.changed_canon_fields():
                raise ValueError(
                    f"{assignments(self, changed)}: options of CANON, which advantage_estimator="
                    f"{self.advantage_estimator!r} does not use; leave them at their defaults"
                )
        if self.entropy_source not in ENTROPY_SOURCES:
            raise ValueError(f"entropy_source={self.entropy_source!r} must be one of {ENTROPY_SOURCES}")

    def _check_policy_loss(self) -> None:
        if self.policy_loss is None and self.policy_loss_kwargs:
            raise ValueError(f"policy_loss_kwargs={self.policy_loss_kwargs} would be ignored: policy_loss is None")
        if self.policy_loss in POLICY_LOSSES:
            types = get_type_hints(POLICY_LOSSES[self.policy_loss])
            check_values(self.policy_loss_kwargs, types, where="policy_loss_kwargs: ")
        policy_loss = self.make_policy_loss()
        if policy_loss is None:
            return
        check_policy_loss(self, policy_loss)
        a_step, a_rollout = self.gradient_accumulation_steps, self.steps_per_generation
        if self.policy_loss == "kl_cov" and a_step % (a_rollout * self.num_iterations) == 0:
            logger.warning(
                "policy_loss='kl_cov' with one update a rollout is the plain policy gradient: its penalty on the "
                "change since the rollout has no slope where nothing has changed; set steps_per_generation or "
                "num_iterations for several updates a rollout"
            )

    def _check_dynamic_sampling(self) -> None:
        options = self.dynamic_sampling_kwargs
        if not self.dynamic_sampling and options:
            raise ValueError(f"dynamic_sampling_kwargs={options} would be ignored: dynamic_sampling is False")
        known = [option.name for option in fields(DynamicSampling)]
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"dynamic_sampling_kwargs has {unknown}; it takes {known}")
        check_values(options, get_type_hints(DynamicSampling), where="dynamic_sampling_kwargs: ")
        try:
            made = self.make_dynamic_sampling()
        except ValueError as error:
            raise ValueError(f"dynamic_sampling_kwargs: {error}") from None
        check_shrink(made, self)

    def _check_canon(self) -> None:
        if self.canon_metric != RANDOM:
            get_metric(self.canon_metric, field="canon_metric")
        if self.canon_alpha_group not in (None, "higher", "lower"):
            raise ValueError(f"canon_alpha_group={self.canon_alpha_group!r} must be 'higher', 'lower' or None")
        if self.canon_mu_schedule not in SCHEDULES:
            raise ValueError(f"canon_mu_schedule={self.canon_mu_schedule!r} must be one of {list(SCHEDULES)}")
        changed = self.changed_canon_fields()
        if "canon_mu" in changed and self.canon_mu_schedule != "constant":
            raise ValueError(
                f"canon_mu={self.canon_mu} is ignored by canon_mu_schedule={self.canon_mu_schedule!r}; set only one"
            )
        if self.canon_alpha != 1 and self.canon_mu_schedule == "constant" and self.canon_mu == 0:
            raise ValueError(
                f"canon_alpha={self.canon_alpha} acts in the inter-group comparison, which has no weight with "
                "canon_mu=0.0; leave it at 1.0"
            )
        cosine = [name for name in changed if name.startswith("canon_cosine_")]
        if cosine and self.canon_mu_schedule not in COSINE_SCHEDULES:
            raise ValueError(
                f"{assignments(self, cosine)}: honoured only by canon_mu_schedule in {COSINE_SCHEDULES}, not by "
                f"{self.canon_mu_schedule!r}"
            )
        if self.canon_mu_schedule in COSINE_SCHEDULES:
            bounds = SCHEDULES[self.canon_mu_schedule].__kwdefaults__
            low = bounds["low"] if self.canon_cosine_low is None else self.canon_cosine_low
            high = bounds["high"] if self.canon_cosine_high is None else self.canon_cosine_high
            if low > high:
                raise ValueError(f"canon_cosine_low={low!r} must be at most canon_cosine_high={high!r}")
            if self.max_steps > 0:  # else the length of the dataset decides, and the schedule checks it
                try:
                    self.mu_schedule()(0, self.rollouts(), 0.0)
                except ValueError as error:
                    of_run = assignments(self, ["canon_mu_schedule", "canon_cosine_cycles", "max_steps"])
                    raise ValueError(f"{of_run}: {error}") from None
        if self.advantage_estimator == "canon":
            self._warn_about_halves()

    def _warn_about_halves(self) -> None:
        if self.num_generations < 4:
            logger.warning(
                "num_generations=%d leaves a half of one response, whose intra-group advantage is always 0; CANON is "
                "meant for groups of 4 or more",
                self.num_generations,
            )
        elif self.num_generations % 2:
            logger.warning(
                "num_generations=%d is odd: the higher half has one response more, and mu = 0.5 is not Dr.GRPO",
                self.num_generations,
            )

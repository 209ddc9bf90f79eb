"""Configuration of [`~canon_trl.CANONTrainer`]."""

import logging
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, Literal

from canon_trl.advantages import ESTIMATORS
from canon_trl.config.checks import assignments
from canon_trl.config.help_texts import with_help
from canon_trl.config.loss_stages import PPO_LOSSES, LossStages
from canon_trl.config.stages import StagesConfig
from canon_trl.method import Method
from canon_trl.metrics import METRICS, ResponseMetric, get_metric
from canon_trl.schedules import SCHEDULES

logger = logging.getLogger(__name__)

ACCURACY_SCHEDULES = ("inter_to_intra", "intra_to_inter")
COSINE_SCHEDULES = ("cosine_inter_to_intra", "cosine_intra_to_inter")
CLIP_HIGHER = 0.28  # epsilon_high is this very object if it was not set
CISPO_CAP = 5.0

# Names of the estimators in the reference implementation. Its `alpha` is canon_alpha and its `_lambda` is canon_mu.
PRESETS: dict[str, dict[str, Any]] = {
    "dr_entropy_token_budget": {"canon_metric": "entropy"},
    "dr_length_on_mean": {"canon_metric": "length"},
    # The reference uses mu = accuracy; its alternative is canon_mu_schedule="inter_to_intra".
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

# Published settings of TRL's own options.
PRESETS_OF_TRL: dict[str, dict[str, Any]] = {
    # https://huggingface.co/papers/2505.22312, the values of or1_scripts/train/7b_8k.sh. TRL's own defaults change the
    # coefficient 50 times faster, and 200 times as far.
    "skywork_or1_entropy": {
        "use_adaptive_entropy": True,
        "entropy_coef": 0.0,
        "entropy_coef_min": 0.0,
        "entropy_coef_max": 0.005,
        "entropy_coef_delta": 1e-4,
        "entropy_target": 0.2,
    },
}


@with_help
@dataclass
class CANONConfig(StagesConfig):
    r"""
    Configuration class for the [`CANONTrainer`].

    It has every field of [`~trl.GRPOConfig`], [`~canon_trl.config.RunConfig`] and
    [`~canon_trl.config.StagesConfig`], and those below; `advantage_estimator` defaults to `"canon"`.

    Args:
        > Parameters that control CANON

        canon_metric: Metric that splits the responses to a prompt: `"entropy"`, `"length"`, `"surprisal"`, `"random"`
            or the import path of a metric, see `canon_trl.metrics`.
        canon_mu: Weight of the inter-group comparison (Eq. 5 of the paper): 1 is CANON-Inter, 0 CANON-Intra, and 0.5
            with even groups and `canon_alpha=1` Dr.GRPO.
        canon_mu_schedule: A name in `canon_trl.schedules.SCHEDULES`: `"constant"`, `"inter_to_intra"` (mu = 1 -
            accuracy), `"intra_to_inter"` (mu = accuracy), `"cosine_inter_to_intra"`, `"cosine_intra_to_inter"`.
        canon_alpha: Factor on the rewards of `canon_alpha_group` in the inter-group comparison (Eq. 9 of the ICLR
            text, Eq. 8 in the reference's README). Below 1 it prefers short responses (length) or exploration
            (entropy).
        canon_alpha_group: `"higher"` or `"lower"`. Default: `"higher"` for the metric `"length"`, `"lower"` for every
            other.
        canon_cosine_warmup_ratio: Share of the rollouts that the cosine schedules spend on the warm-up.
        canon_cosine_cycles: Number of cosine cycles after the warm-up.
        canon_cosine_low: Lowest value of the curve. Default, as in the reference: 0.4 for the inter-group weight of
            `"cosine_inter_to_intra"`, 0 for the intra-group weight of `"cosine_intra_to_inter"`.
        canon_cosine_high: Highest value of the curve. Default, as in the reference: 1 and 0.6.

        > Parameters that have a different default from TRL's

        loss_type: The loss, see [`~trl.GRPOConfig`]. CANON is defined with `"dr_grpo"`.
        scale_rewards: TRL's scaling of advantages, which the estimator replaces: `"none"` and TRL's default `"group"`
            have no effect; `"batch"` chooses `advantage_estimator="grpo_batch"` unless you choose another one.
        epsilon_high: Upper clip of the ratio. Default: 0.28 if the loss clips the ratio per token as PPO does
            (`loss_type` `"grpo"`, `"bnpo"`, `"dapo"` or `"dr_grpo"`, `importance_sampling_level="token"`); 5.0, which
            TRL recommends, with `loss_type="cispo"`, which caps the ratios; otherwise TRL's `None`.
        num_generations: Number of responses to sample per prompt, the size G of a prompt group.
        per_device_train_batch_size: Responses per device and forward pass in training.
        per_device_eval_batch_size: Responses per device and forward pass in evaluation.
    """

    advantage_estimator: dict[str, Any] | str | None = "canon"
    canon_metric: str = "entropy"
    canon_mu: Annotated[float, "[0, 1]"] = 1.0
    canon_mu_schedule: str = "constant"
    canon_alpha: Annotated[float, "(0, 1e6]"] = 1.0  # beyond 1e6 float32 soon overflows
    canon_alpha_group: Literal["higher", "lower", None] = None
    canon_cosine_warmup_ratio: Annotated[float, "[0, 1)"] = 0.2
    canon_cosine_cycles: Annotated[int, "[1, inf)"] = 3
    canon_cosine_low: Annotated[float, "[0, 1]"] | None = None
    canon_cosine_high: Annotated[float, "[0, 1]"] | None = None

    loss_type: str = "dr_grpo"
    scale_rewards: str = "none"
    epsilon_high: float | None = CLIP_HIGHER
    num_generations: int | None = 16
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 16

    def __post_init__(self) -> None:
        if self.epsilon_high is CLIP_HIGHER:
            self._settle_epsilon_high()
        super().__post_init__()
        self._check_canon()

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "CANONConfig":
        """Return a configuration with published settings, by name.

        The estimators of CANON's reference implementation, by their names there: `"dr_entropy_token_budget"`,
        `"dr_length_on_mean"`, `"dr_entropy_token_budget_annel"`, `"dr_entropy_token_budget_cosine_restart"`,
        `"dr_entropy_token_budget_cosine_restart_r"`, `"dr_random"`. The reference's `alpha` is `canon_alpha` and its
        `_lambda` is `canon_mu`.

        `"skywork_or1_entropy"`: the adaptive entropy bonus of Skywork-OR1
        (https://huggingface.co/papers/2505.22312), in TRL's own options with the values of the authors' scripts. It
        sets nothing else. TRL counts an entropy equal to the target as below it, Skywork-OR1 as above it.

        Args:
            name: the name of the settings.
            overrides: any field.

        Raises:
            ValueError: the name is unknown, or a field has a bad value.
        """
        presets = PRESETS | PRESETS_OF_TRL
        if name not in presets:
            raise ValueError(f"preset {name!r} is unknown; choose one of {sorted(presets)}")
        return cls(**{**presets[name], **overrides})

    def mu_schedule(self) -> partial:
        """Return the schedule `(step, total_steps, accuracy) -> mu` with options bound."""
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

    def alpha_group(self, metric: ResponseMetric | None) -> str:
        """Return the half whose rewards alpha multiplies; the default depends on the metric."""
        return self.canon_alpha_group or ("higher" if metric is METRICS["length"] else "lower")

    def changed_canon_fields(self) -> list[str]:
        """Return the `canon_*` fields that differ from their defaults."""
        return [
            option.name
            for option in fields(self)
            if option.name.startswith("canon_") and getattr(self, option.name) != option.default
        ]

    def _settle_epsilon_high(self) -> None:
        """Choose the default: 0.28 suits a ratio that is clipped per token; other losses give it another meaning."""
        if self.loss_type == "cispo":
            self.epsilon_high = CISPO_CAP
        elif self.loss_type not in PPO_LOSSES or self.importance_sampling_level != "token":
            self.epsilon_high = None

    def make_estimator(self, metric: ResponseMetric | None = None) -> Method:
        """Return the advantage estimator with options bound; CANON's mu comes from a schedule instead.

        Args:
            metric: replaces `canon_metric`.
        """
        if self.advantage_estimator != "canon":
            return super().make_estimator()
        chosen = metric or self.canon_metric
        group = self.alpha_group(get_metric(chosen, field="canon_metric"))
        return ESTIMATORS["canon"].with_options(
            {"metric": chosen, "alpha": self.canon_alpha, "alpha_group": group}, where=""
        )

    def _check_estimator(self) -> None:
        changed = self.changed_canon_fields()
        if self.advantage_estimator == "canon" and self.advantage_estimator_kwargs:
            raise ValueError(
                f"advantage_estimator_kwargs={self.advantage_estimator_kwargs} must be empty for 'canon', whose "
                "options are the canon_* fields"
            )
        super()._check_estimator()
        if self.advantage_estimator != "canon" and changed:
            raise ValueError(
                f"{assignments(self, changed)} would be ignored: options of CANON do not apply to "
                f"advantage_estimator={self.advantage_estimator!r}"
            )

    def _check_canon(self) -> None:
        get_metric(self.canon_metric, field="canon_metric")
        if self.canon_mu_schedule not in SCHEDULES:
            raise ValueError(f"canon_mu_schedule={self.canon_mu_schedule!r} must be one of {list(SCHEDULES)}")
        changed = self.changed_canon_fields()
        if changed and LossStages(policy_loss=self.make_policy_loss()).ignores_advantages:
            raise ValueError(
                f"{assignments(self, changed)} would be ignored: policy_loss={self.policy_loss!r} reads no advantages"
            )
        if "canon_mu" in changed and self.canon_mu_schedule != "constant":
            raise ValueError(
                f"canon_mu={self.canon_mu} is ignored by canon_mu_schedule={self.canon_mu_schedule!r}; set only one"
            )
        if self.canon_alpha != 1 and self.canon_mu_schedule == "constant" and self.canon_mu == 0:
            raise ValueError(
                f"canon_alpha={self.canon_alpha} would be ignored: canon_mu=0.0 gives the inter-group comparison no "
                "weight"
            )
        cosine = [name for name in changed if name.startswith("canon_cosine_")]
        if cosine and self.canon_mu_schedule not in COSINE_SCHEDULES:
            raise ValueError(
                f"{assignments(self, cosine)} would be ignored by canon_mu_schedule={self.canon_mu_schedule!r}; "
                f"it must be one of {COSINE_SCHEDULES}"
            )
        if self.canon_mu_schedule in COSINE_SCHEDULES:
            bounds = SCHEDULES[self.canon_mu_schedule].__kwdefaults__
            low = bounds["low"] if self.canon_cosine_low is None else self.canon_cosine_low
            high = bounds["high"] if self.canon_cosine_high is None else self.canon_cosine_high
            if low > high:
                raise ValueError(f"canon_cosine_low={low!r} must be at most canon_cosine_high={high!r}")
            if self.max_steps > 0:  # otherwise the schedule checks it, with the dataset's length
                try:
                    self.mu_schedule()(0, self.rollouts(), 0.0)
                except ValueError as error:
                    chosen = assignments(self, ["canon_mu_schedule", "canon_cosine_cycles", "max_steps"])
                    raise ValueError(f"{chosen}: {error}") from None
        if self.advantage_estimator == "canon":
            self._warn_about_halves()

    def _warn_about_halves(self) -> None:
        if self.num_generations < 4:
            logger.warning(
                "num_generations=%d leaves a half with one response, whose intra-group advantage is always 0; CANON "
                "is meant for groups of 4 or more",
                self.num_generations,
            )
        elif self.num_generations % 2:
            logger.warning(
                "num_generations=%d is odd, so the higher half has one response more and mu = 0.5 is not Dr.GRPO",
                self.num_generations,
            )

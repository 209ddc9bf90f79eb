"""Configuration of [`~canon_trl.AStarPOTrainer`]."""

import os
from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from canon_trl.config.checks import assignments, check_config
from canon_trl.config.run import RunConfig

# Options of GRPO's loss and advantage, which A*-PO does without.
NOT_OF_ASTAR_PO = (
    "loss_type",
    "scale_rewards",
    "multi_objective_aggregation",
    "epsilon",
    "epsilon_high",
    "delta",
    "importance_sampling_level",
    "top_entropy_quantile",
    "entropy_coef",
    "use_adaptive_entropy",
    "off_policy_mask_threshold",
    "use_bias_correction_kl",
)


@dataclass
class AStarPOConfig(RunConfig):
    r"""
    Configuration class for the [`AStarPOTrainer`].

    It has the fields of [`~trl.GRPOConfig`] and [`~canon_trl.config.RunConfig`], and those below. Options of GRPO's
    loss and advantage are refused.

    Args:
        beta1 (`float`, *optional*, defaults to `0.5`):
            Temperature of the optimal value (stage 1), at least 0; 0 takes the mean reward.
        beta2 (`float`, *optional*, defaults to `1e-3`):
            Weight of the log-ratio to the reference model in the loss (stage 2), above 0; in the place of `beta`.
        filter_all_incorrect (`bool`, *optional*, defaults to `True`):
            Whether prompts that the reference model never solved are left out of training, as TRL's A2PO does. The
            released code can, and its scripts do not.

    > [!NOTE]
    > These parameters have default values different from [`~trl.GRPOConfig`]:
    > - `num_generations`: Is `1`; A*-PO samples one response a prompt.
    > - `vllm_importance_sampling_correction`: Is `False`; a regression needs no correction for who sampled.
    """

    num_generations: int | None = field(
        default=1, metadata={"help": "Number of responses to sample for each prompt; A*-PO takes one."}
    )
    vllm_importance_sampling_correction: bool = field(
        default=False, metadata={"help": "Not used: a regression needs no correction for who sampled."}
    )
    beta1: float = field(default=0.5, metadata={"help": "Temperature of the optimal value; 0 takes the mean reward."})
    beta2: float = field(default=1e-3, metadata={"help": "Weight of the log-ratio to the reference model."})
    filter_all_incorrect: bool = field(
        default=True, metadata={"help": "Leave out prompts that the reference model never solved."}
    )

    def __post_init__(self) -> None:
        check_config(self)
        if self.num_generations != 1:
            raise ValueError(
                f"num_generations={self.num_generations!r} must be 1: A*-PO samples one response a prompt"
            )
        if self.beta:
            raise ValueError(f"beta={self.beta!r} is GRPO's weight of a KL term; A*-PO has beta2 in its place")
        if self.vllm_importance_sampling_correction:
            raise ValueError(
                "vllm_importance_sampling_correction=True would cost a pass and be ignored: a regression needs no "
                "correction for who sampled; leave it at False"
            )
        self.num_generations_eval = self.num_generations_eval or 1
        self.num_generations = self._any_group_size()
        super().__post_init__()
        self.num_generations = 1
        defaults: dict[str, Any] = {option.name: option.default for option in fields(GRPOConfig)}
        changed = [name for name in NOT_OF_ASTAR_PO if getattr(self, name) != defaults[name]]
        if changed:
            raise ValueError(f"{assignments(self, changed)}: options of GRPO's loss, which A*-PO does without")
        self.beta = self.beta2  # so that TRL prepares the reference model and scores with it

    def _any_group_size(self) -> int:
        """A group size that passes GRPO's check: two or more, and a divisor of the batch. It is used for nothing else.

        Raises:
            ValueError: the batch is a single response.
        """
        parts = self.steps_per_generation or self.gradient_accumulation_steps
        local = self.generation_batch_size or self.per_device_train_batch_size * parts
        size = local if local > 1 else int(os.environ.get("WORLD_SIZE", 1))
        if size < 2:
            raise ValueError(
                f"per_device_train_batch_size={self.per_device_train_batch_size} makes a batch of a single response; "
                "it must be at least 2"
            )
        return size

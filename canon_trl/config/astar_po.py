"""Configuration of [`~canon_trl.AStarPOTrainer`]."""

import os
from dataclasses import dataclass
from typing import Annotated

from canon_trl.config.checks import check_ignored
from canon_trl.config.help_texts import with_help
from canon_trl.config.loss_stages import CLIP, LOSS_OPTIONS
from canon_trl.config.run import RunConfig

# Options of GRPO's loss and advantage, which A*-PO does without.
NOT_OF_ASTAR_PO = ("loss_type", *CLIP, *LOSS_OPTIONS, "scale_rewards", "multi_objective_aggregation")


@with_help
@dataclass
class AStarPOConfig(RunConfig):
    r"""
    Configuration class for the [`AStarPOTrainer`].

    It has the fields of [`~trl.GRPOConfig`] and [`~canon_trl.config.RunConfig`], and those below. Options of GRPO's
    loss and advantage are refused.

    Args:
        > Parameters that control A*-PO

        beta1: Temperature of the optimal value (stage 1); 0 takes the mean reward.
        beta2: Weight of the log-ratio to the reference model in the loss (stage 2), in place of `beta`.
        filter_all_incorrect: Whether to leave prompts that the reference model never solved out of training, as TRL's
            A2PO does. The released code can, and its scripts do not.

        > Parameters that have another default than TRL's

        num_generations: Number of responses to sample per prompt, which is 1.
        vllm_importance_sampling_correction: Not used: a regression needs no correction for who sampled.
    """

    beta1: Annotated[float, "[0, 1e6]"] = 0.5
    beta2: Annotated[float, "(0, 1e6]"] = 1e-3
    filter_all_incorrect: bool = True

    num_generations: int | None = 1
    vllm_importance_sampling_correction: bool = False

    def __post_init__(self) -> None:
        if self.num_generations != 1:
            raise ValueError(
                f"num_generations={self.num_generations!r} must be 1: A*-PO samples one response per prompt"
            )
        if self.beta not in (0, self.beta2):
            raise ValueError(f"beta={self.beta!r} is GRPO's weight of a KL term; A*-PO takes beta2 in its place")
        self.num_generations_eval = self.num_generations_eval or 1
        self.num_generations = self._any_group_size()
        super().__post_init__()
        self.num_generations = 1
        check_ignored(self, NOT_OF_ASTAR_PO, "A*-PO has a loss and an advantage of its own")
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

"""Configuration of [`~canon_trl.AStarPOTrainer`]."""

import os
from dataclasses import dataclass
from typing import Annotated

from canon_trl.config.checks import check_ignored
from canon_trl.config.help_texts import with_help
from canon_trl.config.loss_stages import CLIP, LOSS_OPTIONS
from canon_trl.config.run import RunConfig

# Options of GRPO's loss and advantage, which A*-PO ignores.
IGNORED = ("loss_type", *CLIP, *LOSS_OPTIONS, "scale_rewards", "multi_objective_aggregation")


@with_help
@dataclass
class AStarPOConfig(RunConfig):
    r"""
    Configuration class for the [`AStarPOTrainer`].

    It has the fields of [`~trl.GRPOConfig`] and [`~canon_trl.config.RunConfig`], and those below. It rejects options
    of GRPO's loss and advantage.

    Args:
        > Parameters that control A*-PO

        beta1: Temperature of the optimal value (stage 1); 0 takes the mean reward.
        beta2: Weight of the log-ratio to the reference model in the loss (stage 2); it replaces `beta`.
        filter_all_incorrect: Whether to skip prompts that the reference model never solved, as TRL's A2PO does. The
            authors' code has this option, but its scripts do not set it.

        > Parameters that have a different default from TRL's

        num_generations: Number of responses to sample per prompt, always 1.
        vllm_importance_sampling_correction: Not used: a regression needs no correction for the sampler.
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
            raise ValueError(f"beta={self.beta!r} is GRPO's weight of a KL term; for A*-PO, set beta2 instead")
        self.num_generations_eval = self.num_generations_eval or 1
        self.num_generations = self._any_group_size()
        super().__post_init__()
        self.num_generations = 1
        check_ignored(self, IGNORED, "A*-PO has its own loss and advantage")
        self.beta = self.beta2  # so that TRL prepares the reference model and scores with it

    def _any_group_size(self) -> int:
        """Return a group size that passes GRPO's check, at least two and a divisor of the batch. It has no other use.

        Raises:
            ValueError: the batch has a single response.
        """
        micro_batches = self.steps_per_generation or self.gradient_accumulation_steps
        local = self.generation_batch_size or self.per_device_train_batch_size * micro_batches
        size = local if local > 1 else int(os.environ.get("WORLD_SIZE", 1))
        if size < 2:
            raise ValueError(
                f"per_device_train_batch_size={self.per_device_train_batch_size} gives a batch of a single response; "
                "it must be at least 2"
            )
        return size

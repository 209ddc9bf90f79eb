"""The divisor of TRL's loss, for terms that are added to the loss."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def aggregate(values: Tensor, mask: Tensor, trainer: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Aggregate values per token to one number, as TRL's loss type does.

        aggregate(x) = -TRL_loss(advantages=x)     on-policy, bit for bit

    Args:
        values: `(B, T)`.
        mask: `(B, T)`, true on the tokens that are trained on.
        trainer: supplies `loss_type`, `max_completion_length` and the accumulation.
        inputs: inputs of the micro-batch.

    Returns:
        0-d; TRL adds it up over the micro-batches of an optimiser step.

    Raises:
        ValueError: this equation does not hold for the loss type.
    """
    accumulated = trainer.current_gradient_accumulation_steps
    kept = values.masked_fill(~mask, 0.0)
    if trainer.loss_type == "grpo":
        return (kept.sum(-1) / mask.sum(-1).clamp(min=1.0)).mean() / accumulated
    if trainer.loss_type == "bnpo":
        return kept.sum() / mask.sum().clamp(min=1.0) / accumulated
    if trainer.loss_type == "dr_grpo":
        return kept.sum() / (len(kept) * trainer.max_completion_length) / accumulated
    if trainer.loss_type == "luspo":
        return kept.sum(-1).mean() / accumulated
    if trainer.loss_type == "dapo":
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        return kept.sum() / (tokens * accumulated / trainer.args.steps_per_generation)
    raise ValueError(f"loss_type={trainer.loss_type!r} has no divisor that a loss term per token could use")

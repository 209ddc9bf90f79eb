"""The number of micro-batches and rollouts in a run."""


def micro_batches(optimizer_steps: int, *, per_epoch: int, accumulation: int) -> int:
    """Count the micro-batches in the first `optimizer_steps` of a run.

    An optimiser step takes `accumulation` micro-batches, and the last one of an epoch the rest of the `per_epoch`.
    """
    epochs, steps = divmod(optimizer_steps, -(-per_epoch // accumulation))
    return epochs * per_epoch + steps * accumulation


def rollouts_in_run(optimizer_steps: int, *, per_epoch: int, accumulation: int, per_rollout: int) -> int:
    """Count the rollouts in a run, including a last one that is only partly used.

    Args:
        optimizer_steps: optimiser steps in the run.
        per_epoch: micro-batches per epoch.
        accumulation: micro-batches per optimiser step.
        per_rollout: micro-batches trained on per rollout, with each of its `num_iterations` repeats counted.
    """
    return -(-micro_batches(optimizer_steps, per_epoch=per_epoch, accumulation=accumulation) // per_rollout)

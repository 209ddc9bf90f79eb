"""How many micro-batches and rollouts a run is made of."""


def micro_batches(optimizer_steps: int, *, an_epoch: int, accumulation: int) -> int:
    """Micro-batches that the first `optimizer_steps` of a run take.

    An optimiser step takes `accumulation` of them, but the last one of an epoch what is left of the `an_epoch`.
    """
    epochs, steps = divmod(optimizer_steps, -(-an_epoch // accumulation))
    return epochs * an_epoch + steps * accumulation


def rollouts_in_run(optimizer_steps: int, *, an_epoch: int, accumulation: int, a_rollout: int) -> int:
    """Rollouts that are made in `optimizer_steps`, the last one perhaps trained on in part.

    Args:
        optimizer_steps: of the whole run.
        an_epoch: micro-batches of an epoch.
        accumulation: micro-batches of an optimiser step.
        a_rollout: micro-batches that are trained on from one rollout, `num_iterations` times each.
    """
    return -(-micro_batches(optimizer_steps, an_epoch=an_epoch, accumulation=accumulation) // a_rollout)

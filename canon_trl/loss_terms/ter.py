"""TER, targeted entropy regularisation (https://huggingface.co/papers/2506.18330)."""

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from torch import Tensor

from canon_trl.paper import Paper
from canon_trl.tokens import token_mean

PAPER = Paper(
    key="wu2025confucius3",
    title="Confucius3-Math: A Lightweight High-Performance Reasoning LLM for Chinese K-12 Mathematics Learning",
    authors="Lixin Wu and Na Cai and Qiao Cheng and Jiachen Wang and Yitao Duan",
    id="2506.18330",
)


def ter(
    entropies: Tensor,
    mask: Tensor,
    measured: Mapping[str, float] | None,
    mean: Callable[[Tensor, Tensor], Tensor] = token_mean,
    *,
    coef: Annotated[float, "[0, inf)"] = 1e-3,
    target: Annotated[float, "[0, inf)"] = 0.55,
) -> Tensor:
    """Pull the mean token entropy towards a target, from below and from above.

        loss += coef * |mean_t(H_t) - target|

    A fixed entropy bonus only raises the entropy, and TRL's adaptive bonus acts only below its target. The paper uses
    TER in the first stage of training, with responses of up to 4,096 tokens.

    The paper does not say over which tokens it takes the mean. The mean of a micro-batch is noisy, so the absolute
    value would pull up in one micro-batch and down in the next. Here the direction comes from the mean entropy of the
    last optimiser step on all ranks, and the gradient from the micro-batch:

        loss += coef * sign(measured - target) * (mean_t(H_t) - target)

    If an optimiser step has several micro-batches, each takes mean_t over its own tokens on all ranks, and the trainer
    averages the terms, so a token counts for more in a micro-batch with fewer tokens.

    Use it to hold the entropy near a known value, from either side. Without such a value, `e3_temperature` measures
    one.

    Args:
        entropies: `(B, T)`, in nats, of the current policy, with gradient.
        mask: `(B, T)`, true on the trained tokens. Values off the mask have no effect.
        measured: numbers of the last optimiser step on all ranks. TER reads "entropy", in nats per token. Empty or
            `None` at the first step, where the mean of the micro-batch replaces it.
        mean: takes the mean of `(B, T)` values over the tokens in a mask; in training
            [`~canon_trl.tokens.Tokens.mean`], which covers all ranks.
        coef: weight in the loss, per nat.
        target: H*, in nats per token; 0.55 in the paper, for its own model and task.

    Returns:
        0-d, in at least float32; 0 at the target. Without a token it has no gradient.
    """
    entropy = mean(entropies, mask.bool())
    before = entropy.new_tensor(measured["entropy"]) if measured else entropy.detach()
    return coef * torch.sign(before - target) * (entropy - target)

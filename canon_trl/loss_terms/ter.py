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
    """Pull the mean token entropy to a target, from below as well as from above.

        loss += coef * |mean_t(H_t) - target|

    A fixed entropy bonus only ever raises the entropy, and TRL's adaptive one acts below its target only. The paper
    uses TER in the first stage of training, with responses of up to 4,096 tokens.

    The paper does not say over which tokens the mean is taken. In a micro-batch it is noisy, and then the absolute
    value pulls up in one micro-batch and down in the next. So the direction comes from the mean entropy of the last
    optimiser step on all ranks, and the gradient from the tokens at hand:

        loss += coef * sign(measured - target) * (mean_t(H_t) - target)

    Args:
        entropies: `(B, T)`, in nats, of the current policy, with gradient.
        mask: `(B, T)`, true on the tokens that are trained on. What lies off the mask never counts.
        measured: numbers of the last optimiser step on all ranks, of which TER reads "entropy", in nats per token;
            empty or `None` at the first one, where the mean of these tokens takes its place.
        mean: of `(B, T)` values over the tokens that a mask marks; [`~canon_trl.tokens.Tokens.mean`] in training, so
            that it is that of all ranks.
        coef: weight in the loss, per nat.
        target: H*, in nats per token. The paper has 0.55 for its own model and task.

    Returns:
        0-d, in at least float32; 0 at the target itself. Without a token it has no gradient.
    """
    entropy = mean(entropies, mask.bool())
    before = entropy.new_tensor(measured["entropy"]) if measured else entropy.detach()
    return coef * torch.sign(before - target) * (entropy - target)

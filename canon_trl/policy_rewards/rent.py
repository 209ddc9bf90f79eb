"""RENT, reinforcement learning from the policy's own certainty (https://huggingface.co/papers/2505.22660)."""

from typing import Annotated

import torch
from torch import Tensor

from canon_trl.paper import Paper

PAPER = Paper(
    key="prabhudesai2025maximizing",
    title="Maximizing Confidence Alone Improves Reasoning",
    authors="Mihir Prabhudesai and Lili Chen and Alex Ippoliti and Katerina Fragkiadaki and Hao Liu and Deepak Pathak",
    id="2505.22660",
    code="satrams/rent-rl",
)


def rent_reward(entropies: Tensor, mask: Tensor, *, empty: Annotated[float, "(-inf, 0]"] = -7.0) -> Tensor:
    """Reward a response for the certainty of the policy that wrote it, without any label (Sec. 3.3).

        r_i = -mean_t(H_it)    over the tokens that the model wrote

    The best possible reward is 0: the policy was certain of every token. Long training collapses to short, certain and
    wrong answers, so watch the length and stop on a labelled validation set. The paper trains with GRPO, 5 responses
    per prompt, a learning rate of 1e-6 and a KL penalty of 0.001 to the reference.

    Use it without labels, for a few dozen steps.

    Args:
        entropies: `(B, T)`, in nats, of the policy that sampled the responses, at the sampling temperature. They are
            detached.
        mask: `(B, T)`, true on the tokens that the model wrote. Values off the mask have no effect.
        empty: reward of a response in which the model wrote no token, in nats; the mean over no tokens would be 0, the
            best reward. The authors' code gives -7 to a response without an extractable answer; a policy reward does
            not read the text, so here only a response without tokens gets it.

    Returns:
        `(B,)`, in nats, in at least float32.
    """
    mask = mask.bool()
    entropies = entropies.detach().to(torch.promote_types(entropies.dtype, torch.float32))
    count = mask.sum(dim=-1)
    certainty = -entropies.masked_fill(~mask, 0.0).sum(dim=-1) / count
    return certainty.masked_fill(count == 0, empty)

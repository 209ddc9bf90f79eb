"""The entropy-shaped advantage: uncertain tokens learn more (https://huggingface.co/papers/2506.14758)."""

from typing import Annotated

import torch
from torch import Tensor

from canon_trl.paper import Paper

PAPER = Paper(
    key="cheng2025reasoning",
    title="Reasoning with Exploration: An Entropy Perspective",
    authors="Daixuan Cheng and Shaohan Huang and Xuekai Zhu and Bo Dai and Wayne Xin Zhao and Zhenliang Zhang and "
    "Furu Wei",
    id="2506.14758",
)


def entropy_shaped(
    advantages: Tensor,
    entropies: Tensor,
    *,
    alpha: Annotated[float, "[0, inf)"] = 0.4,
    kappa: Annotated[float, "(1, inf)"] = 2.0,
) -> Tensor:
    """Add a multiple of the token's entropy to its advantage, capped at a fraction of that advantage (Eq. 5 and 6).

        A'_t = A_t + min(alpha * H_t, |A_t| / kappa)

    At uncertain tokens, it reinforces right answers more and punishes wrong answers less. An advantage of 0 stays 0,
    so a prompt group without spread still has no gradient; since kappa > 1, no advantage changes sign.

    The paper publishes no code. Its experiments use rewards of 1 and -1, clip-higher and the token mean.

    Use it if uncertain tokens lead to right answers and entropy falls too fast. It does nothing in groups without
    spread.

    Args:
        advantages: `(B, T)`, or `(B,)` for one advantage per response.
        entropies: `(B, T)`, in nats, of the current policy at every update, at the sampling temperature. They are
            detached. Where an entropy is NaN or not positive, as it may be off the mask, the advantage is unchanged.
        alpha: advantage per nat; 0.4 with GRPO and 0.1 with PPO in the paper. With 0 the advantages are unchanged,
            bit for bit.
        kappa: caps the entropy bonus at |A| / kappa.

    Returns:
        `(B, T)` in the dtype of `advantages`.
    """
    per_token = advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(entropies.shape)
    bonus = torch.minimum(alpha * entropies.detach().to(per_token.dtype), per_token.abs() / kappa)
    return torch.where(bonus > 0, per_token + bonus, per_token)

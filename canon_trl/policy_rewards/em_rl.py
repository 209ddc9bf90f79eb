"""EM-RL, reinforcement learning from the policy's own entropy (https://huggingface.co/papers/2505.15134)."""

from typing import Literal

import torch
from torch import Tensor

from canon_trl.options import check_arguments
from canon_trl.paper import Paper

PAPER = Paper(
    key="agarwal2025unreasonable",
    title="The Unreasonable Effectiveness of Entropy Minimization in LLM Reasoning",
    authors="Shivam Agarwal and Zimin Zhang and Lifan Yuan and Jiawei Han and Hao Peng",
    id="2505.15134",
    code="shivamag125/EM_PT",
)

Form = Literal["paper", "released"]


def em_rl_sequence_reward(log_probs: Tensor, mask: Tensor, *, form: Form = "paper") -> Tensor:
    """Reward a response for its probability under the policy that wrote it, without any label (Eq. 3).

        r_i = sum_t(log p_it) = log p(y_i)    over the tokens that the model wrote

    Its mean is minus the entropy of whole responses. It prefers likely responses, even if single steps are uncertain.
    It is a sum, so every token costs and shorter responses earn more. The authors' code (at 8428ba9) takes the mean
    over the tokens instead, `form="released"`. Watch the length and stop on a labelled validation set, as the paper
    does. It helps where the untrained model is already often right.

    The paper trains with RLOO (`advantage_estimator: rloo`), 4 responses per prompt, 512 prompts per rollout, a
    learning rate of 1e-6 and a KL penalty of 0.001 to the reference. The code makes 4 updates per rollout.

    Use it without labels and with short answers. For long reasoning use `rent`, which doesn't favour short responses.

    Args:
        log_probs: `(B, T)`, of the sampled tokens under the policy that sampled them, at the sampling temperature.
            They are detached.
        mask: `(B, T)`, true on the tokens that the model wrote. Values off the mask have no effect. A response without
            tokens gets 0, the best reward.
        form: `"paper"` for the sum, `"released"` for the mean.

    Returns:
        `(B,)`, in nats, in at least float32.
    """
    check_arguments(em_rl_sequence_reward, form=form)
    return _over_response(log_probs, mask, form)


def em_rl_token_reward(entropies: Tensor, mask: Tensor, *, form: Form = "paper") -> Tensor:
    """Reward a response for the certainty of the policy at every step, without any label (Eq. 4).

        r_i = -sum_t(H_it)    over the tokens that the model wrote

    Its mean is minus the sum of the entropies of the steps. Each token costs its entropy, so shorter responses earn
    more. The authors' code (at 8428ba9) takes the mean over the tokens instead, `form="released"`, which is RENT's
    reward (`rent`). Watch the length and stop on a labelled validation set, as the paper does. The paper's setting is
    the same as for `em_rl_sequence`.

    Use it without labels and with short answers. For long reasoning use `rent`, which doesn't favour short responses.

    Args:
        entropies: `(B, T)`, in nats, of the policy that sampled the responses, at the sampling temperature. They are
            detached.
        mask: `(B, T)`, true on the tokens that the model wrote. Values off the mask have no effect. A response without
            tokens gets 0, the best reward.
        form: `"paper"` for the sum, `"released"` for the mean.

    Returns:
        `(B,)`, in nats, in at least float32.
    """
    check_arguments(em_rl_token_reward, form=form)
    return -_over_response(entropies, mask, form)


def _over_response(values: Tensor, mask: Tensor, form: Form) -> Tensor:
    mask = mask.bool()
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    total = values.masked_fill(~mask, 0.0).sum(dim=-1)
    return total if form == "paper" else total / mask.sum(dim=-1).clamp(min=1)

"""DisCO, discriminative constrained optimisation (https://huggingface.co/papers/2505.12366)."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor

from canon_trl.paper import Paper
from canon_trl.tokens import token_mean

PAPER = Paper(
    key="li2025disco",
    title="DisCO: Reinforcing Large Reasoning Models with Discriminative Constrained Optimization",
    authors="Gang Li and Ming Lin and Tomer Galanti and Zhengzhong Tu and Tianbao Yang",
    id="2505.12366",
    code="Optimization-AI/DisCO",
)

Score = Literal["log_likelihood", "likelihood_ratio"]
Divergence = Literal["kl", "low_var_kl"]


def disco_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    rewards: Tensor,
    mask: Tensor,
    mean: Callable[[Tensor, Tensor], Tensor] = token_mean,
    *,
    score: Score = "log_likelihood",
    basic: bool = False,
    tau: Annotated[float, "(0, inf)"] = 10.0,
    beta: Annotated[float, "[0, inf)"] = 1000.0,
    delta: Annotated[float, "[0, inf)"] = 1e-4,
    kl: Divergence = "kl",
) -> Tensor:
    """Raise the scores of right answers above those of wrong ones, within a trust region (Sec. 4).

        s_i  = mean_t(lp_it), or mean_t(exp(lp_it - old_it))      over the tokens of response i
        J    = mean(s | right) - tau * ln(mean(exp(s / tau) | wrong))
        J    = mean(s | right) - mean(s | wrong)                  if basic (DisCO-b)
        K    = mean_t(old - lp), or mean_t(exp(lp - old) - 1 - (lp - old))     over all tokens
        loss = -sum(J) / P + [beta * max(K - delta, 0)] * K       no gradient through [ ]

    The sum covers the groups with both a right and a wrong answer; P counts all groups. The second term of J weights
    the wrong answers with the largest scores, and more strongly the smaller tau is. It clips nothing, and unlike in
    GRPO no advantage gives prompts of medium difficulty more weight. The last term has the gradient of beta / 2 *
    max(K - delta, 0)^2. At the first update on a rollout K is 0, so only J acts. If an optimiser step has several
    micro-batches, K and [ ] are computed for each one, over the tokens of all ranks, and the trainer averages the
    losses, as the released code does.

    Use it if rewards are 0 and 1 and prompts are very easy or very hard, which GRPO's advantages neglect. It needs
    both rewards in a group.

    Args:
        log_probs, old_log_probs: `(B, T)` with B = P * G, the rows of prompt 0 first; current log-probabilities, with
            gradient, and those at sampling time.
        rewards: `(P, G)`, 1 for right and 0 for wrong. A response with any other reward (also NaN) or without tokens
            is neither right nor wrong, but its tokens count in K.
        mask: `(B, T)`, true on the trained tokens. Values off the mask have no effect.
        mean: takes the mean of `(B, T)` values over the tokens in a mask; in training
            [`~canon_trl.tokens.Tokens.mean`], which covers all ranks.
        score: the mean log-likelihood (REINFORCE without a baseline) or the mean ratio (the surrogate of TRPO).
        basic: whether all wrong answers count equally.
        tau: in units of the score; 10 for the log-likelihood and 1 for the ratio in the paper.
        beta: strength of the constraint, per nat.
        delta: divergence that is free of any penalty, in nats per token.
        kl: the estimator of the divergence. The paper and all released scripts use "kl", the plain one; where it is
            negative, there is no penalty. The released functions default to "low_var_kl".

    Returns:
        0-d, in at least float32. The released code has the same gradient, but its value contains tau instead of the
        soft maximum.
    """
    mask = mask.bool()
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    log_probs = log_probs.to(dtype).masked_fill(~mask, 0.0)
    log_ratio = log_probs - old_log_probs.to(dtype).masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()

    length = mask.sum(dim=-1)
    scored = (log_probs if score == "log_likelihood" else ratio).masked_fill(~mask, 0.0)
    scores = (scored.sum(dim=-1) / length.clamp(min=1)).view(rewards.shape)
    answered = (length > 0).view(rewards.shape)
    right, wrong = (rewards == 1) & answered, (rewards == 0) & answered
    contrast = mean_of(scores, right) - (mean_of(scores, wrong) if basic else tau * log_mean_exp(scores / tau, wrong))
    mixed = right.any(dim=-1) & wrong.any(dim=-1)
    objective = contrast.masked_fill(~mixed, 0.0).sum() / len(rewards)

    divergence = mean(-log_ratio if kl == "kl" else ratio - 1 - log_ratio, mask)
    return -objective + (beta * (divergence.detach() - delta)).clamp(min=0) * divergence


def mean_of(scores: Tensor, among: Tensor) -> Tensor:
    """Mean score of each group over the responses in `among`, `(P, G) -> (P,)`; 0 for a group without any."""
    return scores.masked_fill(~among, 0.0).sum(dim=-1) / among.sum(dim=-1).clamp(min=1)


def log_mean_exp(scores: Tensor, among: Tensor) -> Tensor:
    """ln(mean(exp(score))) of each group over the responses in `among`, `(P, G) -> (P,)`.

    A group without any uses all its responses, since the gradient of an empty logsumexp is NaN, even where the caller
    discards the value.
    """
    among = among | ~among.any(dim=-1, keepdim=True)
    count = among.sum(dim=-1).to(scores.dtype)
    return scores.masked_fill(~among, -torch.inf).logsumexp(dim=-1) - count.log()

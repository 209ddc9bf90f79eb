"""A*-PO's loss, optimal advantage regression (https://huggingface.co/papers/2505.20686)."""

from torch import Tensor

from canon_trl.paper import Paper
from canon_trl.policy_losses.kinds import Whole

PAPER = Paper(
    key="brantley2025accelerating",
    title="Accelerating RL for LLM Reasoning with Optimal Advantage Regression",
    authors=r"Kiant\'e Brantley and Mingyu Chen and Zhaolin Gao and Jason D. Lee and Wen Sun and Wenhao Zhan and "
    "Xuezhou Zhang",
    id="2505.20686",
    code="ZhaolinGao/A-PO",
)


def astar_po_loss(
    log_probs: Tensor, ref_log_probs: Tensor, advantages: Tensor, mask: Tensor, *, beta: float
) -> Tensor:
    """Regress the implicit reward, the scaled log-ratio to the reference, onto the optimal advantage (Eq. 4, stage 2).

        loss = mean_i (beta * sum_t m_it * (lp_it - ref_it) - (r_i - V*_i))^2

    The best policy near the reference satisfies beta * log(pi / pi_ref) = r - V* for every response, so one response
    per prompt is enough and nothing is clipped. As in the released code, the mean includes rows without tokens.

    Args:
        log_probs, ref_log_probs: `(B, T)`, of the policy (with gradient) and of the reference.
        advantages: `(B,)`, r - V*, with V* from [`~canon_trl.advantages.optimal_value`].
        mask: `(B, T)`, true on the tokens that the model wrote.
        beta: the paper's beta_2, above 0.

    Returns:
        0-d, in the dtype of `log_probs`.
    """
    implicit_reward = beta * (log_probs - ref_log_probs).masked_fill(~mask.bool(), 0.0).sum(dim=-1)
    return (implicit_reward - advantages).pow(2).mean()


# The paper's r - V* is one advantage per response. It evaluates because TRL's own loss would say nothing about it.
ASTAR_PO = Whole("astar_po", astar_po_loss, renamed={"advantages": "response_advantages"}, evaluates=True)

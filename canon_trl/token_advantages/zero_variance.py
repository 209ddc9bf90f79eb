"""Zero-variance filtering of ScaleRL (https://huggingface.co/papers/2510.13786)."""

from torch import Tensor

from canon_trl.advantages.groups import as_float, has_spread, is_scored
from canon_trl.paper import Paper

PAPER = Paper(
    key="khatri2025art",
    title="The Art of Scaling Reinforcement Learning Compute for LLMs",
    authors="Devvrit Khatri and Lovish Madaan and Rishabh Tiwari and Rachit Bansal and Sai Surya Duvvuri and "
    "Manzil Zaheer and Inderjit S. Dhillon and David Brandfonbrener and Rishabh Agarwal",
    id="2510.13786",
)


def zero_variance(rewards: Tensor) -> Tensor:
    """Leave groups with equal rewards out of the loss and its divisors.

        loss = sum over the tokens of groups with spread / number of these tokens     (loss_type: dapo, for example)

    Such a group has advantage 0 and no gradient, but TRL's divisors count its responses and tokens, so the step
    shrinks as more prompts are solved by all responses or by none. Here a batch trains like a smaller batch of the
    other groups. Unlike dynamic sampling, it samples no replacements. The KL term and all loss terms also omit these
    groups. If no group has spread, the step is empty.

    The paper (Sec. 3.2) describes the method in words and publishes no code for it. SkyRL's option
    `zero_variance_filter` masks the tokens of these groups, so that divisors that count responses still count them; it
    treats rewards within 1e-6 as equal, here within rounding; and it keeps a group with a single scored response,
    whose advantage is 0 here.

    Use it if many groups have equal rewards and sampling others is too expensive. It keeps the step from shrinking, so
    check the learning rate.

    Args:
        rewards: `(P, G)`; NaN marks a response that no reward function could score.

    Returns:
        `(P, 1)` bool, true for the groups to train on.
    """
    scored = as_float(rewards)
    return has_spread(scored, is_scored(scored))

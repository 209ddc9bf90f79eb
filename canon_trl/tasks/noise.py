"""A verifier that errs: flip the 0/1 rewards of a random share of the responses.

Verifiers of code and mathematics are noisy: tests miss bugs, parsers miss right answers, judges guess. A flip with
probability p shrinks every expected difference of rewards by the factor 1 - 2p and keeps the variance of a single
reward, so what a group says about its responses drowns: at p = 0.35 the same precision takes 11 times
as many responses. The true accuracy is unaffected, and so is the best policy.

Theory predicts, before any run, for `arithmetic` with p = 0.35: a comparison of halves averages the noise of G / 2
rewards, so CANON-Inter by a metric that explains the true reward (surprisal) should learn faster than Dr.GRPO and
than a random split; CANON-Intra, which drops that comparison, should learn more slowly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from hashlib import blake2b
from inspect import iscoroutinefunction
from typing import Annotated, Any

from canon_trl.options import check_arguments

RewardFunction = Callable[..., Sequence[float | None]]
FlipShare = Annotated[float, "[0, 0.5)"]


def flipped(reward: RewardFunction, share: FlipShare, *, seed: int = 0) -> RewardFunction:
    """Wrap a reward function so that it gives 1 - r instead of r to a share of the responses.

    Whether a response is flipped depends on the seed, its prompt, its tokens, and the number of equal responses before
    it in the same call. So a repeated run has the same flips, whatever the order of the prompts, and equal responses
    to a prompt are judged independently. Only if the responses to one prompt are spread over several ranks, equal ones
    on different ranks share a verdict.

    Args:
        reward: a synchronous function in TRL's signature that returns 0, 1 or `None`.
        share: probability of a flip.
        seed: seed of the flips.

    Returns:
        A function with the same name. It leaves `None` as it is, and raises `ValueError` for any other reward.

    Raises:
        ValueError: `share` is outside [0, 0.5), or the function is asynchronous or a model.
    """
    check_arguments(flipped, share=share)
    if iscoroutinefunction(reward) or not hasattr(reward, "__name__"):
        raise ValueError(f"reward_flip={share} needs a synchronous reward function, not {reward!r}")

    @wraps(reward)
    def noisy(prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]], **inputs: Any) -> list[float | None]:
        rewards = reward(prompts=prompts, completion_ids=completion_ids, **inputs)
        seen: Counter[str] = Counter()
        given: list[float | None] = []
        for index, (prompt, ids, value) in enumerate(zip(prompts, completion_ids, rewards, strict=True)):
            if value not in (0, 1, None):
                raise ValueError(
                    f"reward_flip={share} needs rewards of 0 or 1, but {reward.__name__!r} gave {value} to completion "
                    f"{index}"
                )
            response = f"{seed} {prompt!r} {list(ids)}"
            seen[response] += 1
            flips = uniform(f"{response} {seen[response]}") < share
            given.append(None if value is None else float(1 - value if flips else value))
        return given

    return noisy


def uniform(text: str) -> float:
    """Return a number in [0, 1) that depends only on the text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big") / 2**56


def measured(reward: RewardFunction) -> RewardFunction:
    """Return the same function under the name `true_...`, to log next to the flipped one."""

    @wraps(reward)
    def true(**inputs: Any) -> Sequence[float | None]:
        return reward(**inputs)

    true.__name__ = f"true_{reward.__name__}"
    return true

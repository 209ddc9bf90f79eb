"""Failures of users' functions: check what they return, and stop all ranks when one fails."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object

from canon_trl.guards import checked_rewards, time_limit, too_slow
from canon_trl.trl_release import is_async_callable


class SharedFailures:
    """Raises an error of one rank on all ranks; the others would wait forever for its next collective call.

    Within [`deferred`] a failing function returns infinity, which no function may return. It passes through the gather
    that happens in any case, so that all ranks see it. Only then do they exchange the reasons.
    """

    def __init__(self) -> None:
        self._deferred = False
        self._error: Exception | None = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Keep errors of guarded functions until [`raise_any`]."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def note(self, error: Exception, what: str, count: int) -> list[float | None]:
        """Keep the error of a function, and return infinities in place of its `count` numbers."""
        error.add_note(what)
        if not self._deferred:
            raise error
        self._error = self._error or error
        return [math.inf] * count

    @contextmanager
    def shared(self, note: str = "") -> Iterator[None]:
        """Raise an error of one rank on all ranks, at the end of this context, which every rank must enter.

        Args:
            note: added to the error.
        """
        try:
            yield
        except Exception as error:
            if note:
                error.add_note(note)
            self._error = error
        self.raise_any()

    def raise_any(self) -> None:
        """Raise the kept error; on other ranks, an error that names the failing rank. Every rank must call this."""
        error, self._error = self._error, None
        notes = getattr(error, "__notes__", [])
        reason = None if error is None else "; ".join([f"{type(error).__name__}: {error}", *notes])
        reasons = gather_object([reason])
        if error is not None:
            raise error
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise RuntimeError(f"rank {rank} of {len(reasons)} failed: {reason}")


def guarded_reward(
    function: Callable[..., Any], name: str, failures: SharedFailures, seconds: float | None
) -> Callable[..., Any]:
    """Wrap a reward function with a time limit and a check that it returns a finite number or `None` per response.

    An asynchronous function can only be interrupted while it awaits.
    """
    what = f"reward function {name!r}"

    async def score_async(completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
        try:
            async with asyncio.timeout(seconds) as limit:
                rewards = await function(completions=completions, **kwargs)
            if limit.expired():  # the function caught the interruption
                raise TimeoutError
            return checked_rewards(rewards, len(completions), what)
        except Exception as error:
            reason = too_slow(what, seconds) if seconds is not None and limit.expired() else error
            return failures.note(reason, f"in {what}", len(completions))

    def score(completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
        try:
            with time_limit(seconds, what):
                rewards = function(completions=completions, **kwargs)
            return checked_rewards(rewards, len(completions), what)
        except Exception as error:
            return failures.note(error, f"in {what}", len(completions))

    return score_async if is_async_callable(function) else score

"""Failures of user's functions: what they return is checked, and one rank's failure stops all of them."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object
from trl.trainer.utils import is_async_callable

from canon_trl.guards import checked_rewards, time_limit, too_slow


class SharedFailures:
    """Errors on one rank that all ranks raise, where the others would wait for a collective call that never comes.

    Within [`deferred`] a failing function returns a number that no function may return, infinity. It passes through
    the gather that is there anyway, so that all ranks see it, and only then they exchange the reasons.
    """

    def __init__(self) -> None:
        self._deferred = False
        self._error: Exception | None = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Errors of guarded functions wait until [`raise_any`]."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def note(self, error: Exception, what: str, count: int) -> list[float | None]:
        """What a function that failed returns in place of `count` numbers."""
        error.add_note(what)
        if not self._deferred:
            raise error
        self._error = self._error or error
        return [math.inf] * count

    @contextmanager
    def shared(self, note: str = "") -> Iterator[None]:
        """An error in this context on one rank is raised on all of them at its end; every rank must enter it.

        Args:
            note: for whoever reads the error.
        """
        try:
            yield
        except Exception as error:
            if note:
                error.add_note(note)
            self._error = error
        self.raise_any()

    def raise_any(self) -> None:
        """On every rank, once any has seen an infinity: the failing rank's own error, elsewhere one that names it."""
        error, self._error = self._error, None
        notes = getattr(error, "__notes__", [])
        mine = [None if error is None else "; ".join([f"{type(error).__name__}: {error}", *notes])]
        reasons = gather_object(mine)
        if error is not None:
            raise error
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise RuntimeError(f"rank {rank} of {len(reasons)} failed: {reason}")


def guarded_reward(
    function: Callable[..., Any], name: str, failures: SharedFailures, seconds: float | None
) -> Callable[..., Any]:
    """The reward function, with a time limit and a check of what it returns: a finite number or `None` a response.

    NaN is `None`: a response that was not scored. Of an asynchronous function the limit holds while it awaits.
    """
    what = f"reward function {name!r}"

    async def scored(completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
        try:
            async with asyncio.timeout(seconds) as limit:
                rewards = await function(completions=completions, **kwargs)
            if limit.expired():  # and the function caught the interruption
                raise TimeoutError
            return checked_rewards(rewards, len(completions), what)
        except Exception as error:
            reason = too_slow(what, seconds) if seconds is not None and limit.expired() else error
            return failures.note(reason, f"in {what}", len(completions))

    def scored_at_once(completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
        try:
            with time_limit(seconds, what):
                rewards = function(completions=completions, **kwargs)
            return checked_rewards(rewards, len(completions), what)
        except Exception as error:
            return failures.note(error, f"in {what}", len(completions))

    return scored if is_async_callable(function) else scored_at_once

"""Limit how long a function may run."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

AGAIN = 1.0  # seconds until a function that caught the interruption is interrupted again


class TimeIsUp(BaseException):
    """Raised inside the function. Not an `Exception`, since functions that score answers catch every `Exception`."""


@contextmanager
def time_limit(seconds: float | None, name: str) -> Iterator[None]:
    """Interrupt the code in this context after a number of seconds.

    A second thread and a timer of CPU time send a signal to the main thread. The thread interrupts code that sleeps or
    waits; the timer interrupts code that holds the interpreter's lock, such as a regular expression. Both send
    SIGVTALRM, since functions that limit their own time (math-verify) use SIGALRM.

    Args:
        seconds: the limit of wall-clock time; `None` for no limit.
        name: name of the function, for the error.

    Raises:
        TimeoutError: the function took too long, even if it caught the interruption.
        ValueError: there is a limit, and this is not the main thread; only that one receives signals.
    """
    if seconds is None:
        yield
        return
    main_thread = threading.get_ident()
    if threading.current_thread() is not threading.main_thread():
        raise ValueError(f"reward_time_limit={seconds} needs training in the main thread, which gets the signals")
    deadline, over, interrupted = time.monotonic() + seconds, threading.Event(), False

    def interrupt(*_: Any) -> None:
        nonlocal deadline, interrupted
        if not over.is_set() and time.monotonic() >= deadline:
            deadline = time.monotonic() + AGAIN / 2  # so that the other signal does not interrupt the cleanup
            interrupted = True
            raise TimeIsUp

    def wake() -> None:
        wait = seconds
        while not over.wait(wait):  # repeatedly, since the function may catch everything
            signal.pthread_kill(main_thread, signal.SIGVTALRM)
            wait = AGAIN

    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, AGAIN)  # CPU time of all threads: the handler checks the clock
    waker = threading.Thread(target=wake, daemon=True)
    waker.start()
    try:
        try:
            yield
        finally:
            over.set()  # a signal may still arrive if the function ended at the last moment
    except TimeIsUp:
        pass
    finally:
        over.set()
        waker.join()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    if interrupted:
        raise too_slow(name, seconds)


def too_slow(name: str, seconds: float) -> TimeoutError:
    """Return the error for a function that exceeded its time limit."""
    return TimeoutError(f"{name} took longer than reward_time_limit={seconds} seconds")

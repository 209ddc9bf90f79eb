"""A limit on how long a function may run."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

AGAIN = 1.0  # seconds after which what caught the interruption is interrupted once more


class TimeIsUp(BaseException):
    """Raised inside the function; no `Exception`, because functions that score answers catch those of all kinds."""


@contextmanager
def time_limit(seconds: float | None, name: str) -> Iterator[None]:
    """Interrupt what runs in this context after so many seconds.

    It takes a signal in the main thread, sent by a second thread and by a timer of CPU time: the thread wakes what
    sleeps or waits, the timer what holds the interpreter's lock, such as a regular expression. Both send SIGVTALRM,
    since SIGALRM is taken by functions that limit their own time (math-verify).

    Args:
        seconds: the limit of wall-clock time; `None` for no limit.
        name: what is limited, for the error.

    Raises:
        TimeoutError: the time was up, whether or not the function caught the interruption.
        ValueError: there is a limit and this is not the main thread, where alone signals arrive.
    """
    if seconds is None:
        yield
        return
    main_thread = threading.get_ident()
    if threading.current_thread() is not threading.main_thread():
        raise ValueError(f"reward_time_limit={seconds} needs training in the main thread, where alone signals arrive")
    deadline, over, interrupted = time.monotonic() + seconds, threading.Event(), False

    def interrupt(*_: Any) -> None:
        nonlocal deadline, interrupted
        if not over.is_set() and time.monotonic() >= deadline:
            deadline = time.monotonic() + AGAIN / 2  # or the other signal would meet the clearing up after this one
            interrupted = True
            raise TimeIsUp

    def wake() -> None:
        wait = seconds
        while not over.wait(wait):  # again and again, where the function catches everything
            signal.pthread_kill(main_thread, signal.SIGVTALRM)
            wait = AGAIN

    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, AGAIN)  # CPU time of all threads: the handler looks at the clock
    waker = threading.Thread(target=wake, daemon=True)
    waker.start()
    try:
        try:
            yield
        finally:
            over.set()  # where the signal may still come, if the function has ended at the last moment
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
    """The error that says which function took longer than its time limit."""
    return TimeoutError(f"{name} took longer than reward_time_limit={seconds} seconds")

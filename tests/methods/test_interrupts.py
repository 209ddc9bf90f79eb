"""Ctrl-C while a file is being written takes effect after the file is complete."""

import signal
import threading

import pytest

from canon_trl.guards.interrupts import finished_before_interrupt


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_it_waits_for_the_end_of_the_context():
    steps = []
    with pytest.raises(KeyboardInterrupt), finished_before_interrupt():
        ctrl_c()
        steps.append("written")
    assert steps == ["written"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_acts_at_once():
    steps = []
    with pytest.raises(KeyboardInterrupt), finished_before_interrupt():
        ctrl_c()
        steps.append("first")
        ctrl_c()
        steps.append("second")
    assert steps == ["first"]


def test_the_handler_of_the_program_is_called():
    calls = []
    before = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    try:
        with finished_before_interrupt():
            ctrl_c()
            assert calls == []
        assert calls == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_inside_is_raised_and_the_handler_returns():
    with pytest.raises(OSError, match="full"), finished_before_interrupt():
        raise OSError("full")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_are_left_alone():
    done = []

    def work():
        with finished_before_interrupt():
            done.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]

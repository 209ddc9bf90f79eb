"""Faults of reward functions, and how training handles them."""

import asyncio
import logging
import math
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy
import pytest
import torch
from toy import TASK, assert_same_parameters, logged, make_trainer, parameters

from canon_trl.guards import checked_rewards, time_limit
from canon_trl.guards.constant_rewards import WARN_AFTER


def half_right(completions, **kwargs):
    return [float(index % 2) for index in range(len(completions))]


def trained(folder, reward, **options):
    trainer = make_trainer(folder, trainer_options={"reward_funcs": reward}, **options)
    trainer.train()
    return trainer


def raises(completions, **kwargs):
    raise KeyError("no such answer")


async def raises_later(completions, **kwargs):
    await asyncio.sleep(0)
    raise KeyError("no such answer")


@pytest.mark.parametrize("reward", [raises, raises_later])
def test_an_error_is_raised_as_it_is_and_names_the_function(tmp_path, reward):
    with pytest.raises(KeyError, match="no such answer") as caught:
        trained(tmp_path, reward)
    assert caught.value.__notes__ == [f"in reward function '{reward.__name__}'"]


def test_when_two_functions_fail_the_first_error_is_raised(tmp_path):
    def fails_too(completions, **kwargs):
        raise ZeroDivisionError("a consequence")

    with pytest.raises(KeyError, match="no such answer") as caught:
        trained(tmp_path, [half_right, raises, fails_too])
    assert caught.value.__notes__ == ["in reward function 'raises'"]


def test_an_error_outside_of_a_rollout_waits_for_nobody(tmp_path):
    """As when a rollout_func computes rewards itself."""
    trainer = make_trainer(tmp_path, trainer_options={"reward_funcs": raises})
    with pytest.raises(KeyError, match="no such answer"):
        trainer.reward_funcs[0](prompts=["1+1="], completions=["2"])


def test_an_error_after_a_rollout_waits_for_nobody(tmp_path):
    def raises_on_request(completions, request=None, **kwargs):
        return raises(completions) if request else half_right(completions)

    trainer = trained(tmp_path, raises_on_request, max_steps=1)
    with pytest.raises(KeyError, match="no such answer"):
        trainer.reward_funcs[0](prompts=["1+1="], completions=["2"], request="fail")


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda n: ["1.0"] * n, TypeError, "returned '1.0', a str, for completion 0; it must be a number or None"),
        (lambda n: [1.0] * (n - 1) + [[2.0]], TypeError, "returned [2.0], a list, for completion 7"),
        (lambda n: "1" * n, TypeError, "returned str '11111111'; it must return a list of rewards"),
        (lambda n: None, TypeError, "returned NoneType None; it must return a list of rewards"),
        (lambda n: 1.0, TypeError, "returned float 1.0; it must return a list of rewards"),
        (lambda n: [1.0] * (n + 1), ValueError, "returned 9 rewards for 8 completions; it must return one each"),
        (lambda n: [], ValueError, "returned 0 rewards for 8 completions"),
        (lambda n: [0.0, math.inf] * (n // 2), ValueError, "returned inf for completion 1; it must be finite in"),
        (lambda n: [-1e39] * n, ValueError, "returned -1e+39 for completion 0; it must be finite in float32 or None"),
        (lambda n: [10**400] * n, ValueError, "returned 1000"),
        (lambda n: b"1" * n, TypeError, "returned bytes b'11111111'; it must return a list of rewards"),
        (lambda n: torch.zeros(n, 2), TypeError, "returned [0.0, 0.0], a list, for completion 0"),
    ],
)
def test_rewards_must_be_a_list_of_numbers(tmp_path, returned, error, message):
    def broken(completions, **kwargs):
        return returned(len(completions))

    with pytest.raises(error, match=re.escape(f"reward function 'broken' {message}")):
        trained(tmp_path, broken)


@pytest.mark.parametrize(
    "rewards",
    [
        [1, 0.5, None],
        (True, numpy.float32(0.5), None),
        [torch.tensor(1.0), numpy.float64(0.5), float("nan")],
        torch.tensor([1.0, 0.5, torch.nan]),
        numpy.array([1.0, 0.5, numpy.nan]),
    ],
    ids=["numbers", "a tuple", "numbers of torch and numpy", "a tensor", "an array"],
)
def test_numbers_of_every_type_are_accepted(rewards):
    checked = checked_rewards(rewards, 3, "it")
    assert checked[:2] == [1.0, 0.5]
    assert checked[2] is None or math.isnan(checked[2])


def sleeps(completions, **kwargs):
    time.sleep(60)
    return [0.0] * len(completions)


def matches_for_ever(completions, **kwargs):
    re.match(r"(a+)+$", "a" * 60 + "b")  # holds the interpreter's lock
    return [0.0] * len(completions)


def catches_everything(completions, **kwargs):
    try:
        time.sleep(60)
    except:  # noqa: E722
        pass
    return [0.0] * len(completions)


async def waits(completions, **kwargs):
    await asyncio.sleep(60)
    return [0.0] * len(completions)


async def catches_while_it_waits(completions, **kwargs):
    try:
        await asyncio.sleep(60)
    except:  # noqa: E722
        pass
    return [0.0] * len(completions)


@pytest.mark.parametrize("reward", [sleeps, matches_for_ever, catches_everything, waits, catches_while_it_waits])
def test_a_function_that_hangs_is_stopped_at_the_time_limit(tmp_path, reward):
    trainer = make_trainer(tmp_path, trainer_options={"reward_funcs": reward}, reward_time_limit=0.5)
    started = time.monotonic()
    message = f"reward function '{reward.__name__}' took longer than reward_time_limit=0.5 seconds"
    with pytest.raises(TimeoutError, match=message):
        trainer.train()
    assert time.monotonic() - started < 30  # it would take 60


def test_a_limit_that_is_not_reached_changes_nothing(tmp_path):
    without = trained(tmp_path / "without", TASK.reward)
    limited = trained(tmp_path / "limited", TASK.reward, reward_time_limit=60.0)
    assert_same_parameters(parameters(limited), parameters(without))


def test_signal_handlers_are_restored():
    before = signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
    try:
        for sleep in (0.0, 5.0):
            with suppress(TimeoutError), time_limit(0.2, "it"):
                time.sleep(sleep)
            assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_IGN
            assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGVTALRM, before)


def test_a_signal_as_the_function_ends_is_also_a_timeout(monkeypatch):
    finish = threading.Event.set

    def late(event):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGVTALRM})
        finish(event)

    with pytest.raises(TimeoutError, match="it took longer"), time_limit(0.1, "it"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGVTALRM})
        time.sleep(0.3)
        monkeypatch.setattr(threading.Event, "set", late)


def test_processor_time_is_not_mistaken_for_wall_clock_time():
    with time_limit(60.0, "it"):
        signal.raise_signal(signal.SIGVTALRM)  # as the timer does after 60 seconds of processor time


def test_a_limit_outside_the_main_thread_is_rejected():
    def limited():
        with time_limit(1.0, "it"):
            pass

    with (
        ThreadPoolExecutor(1) as threads,
        pytest.raises(ValueError, match=r"reward_time_limit=1\.0 needs training in the"),
    ):
        threads.submit(limited).result()


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
def test_an_invalid_limit_is_rejected(tmp_path, limit):
    with pytest.raises(ValueError, match=rf"reward_time_limit={limit} must lie in \(0, inf\)"):
        make_trainer(tmp_path, reward_time_limit=limit)


def nothing(completions, **kwargs):
    return [None] * len(completions)


def test_if_no_response_is_scored_nothing_is_learnt(tmp_path):
    trainer = make_trainer(tmp_path, trainer_options={"reward_funcs": nothing})
    before = parameters(trainer)
    trainer.train()
    assert_same_parameters(parameters(trainer), before)
    assert [entry["grad_norm"] for entry in logged(trainer)] == [0.0, 0.0, 0.0]


def test_responses_with_a_reward_of_none_are_left_out(tmp_path):
    def some(completions, **kwargs):
        return [None if index % 4 == 3 else float(index % 2) for index in range(len(completions))]

    trainer = make_trainer(tmp_path, trainer_options={"reward_funcs": some}, canon_metric="length", canon_mu=0.5)
    seen = []
    trainer.on_rollout(lambda rollout, advantages: seen.append((rollout, advantages)))
    trainer.train()
    for rollout, advantages in seen:
        assert (~rollout.valid).sum(dim=1).tolist() == [1, 1]
        assert advantages[~rollout.valid].tolist() == [0.0, 0.0]
        assert advantages[rollout.valid].abs().min() > 0


def test_a_constant_reward_is_counted_and_named_once(tmp_path, caplog):
    def right_for_a_while(completions, **kwargs):
        right_for_a_while.calls += 1
        return half_right(completions) if right_for_a_while.calls in (3, 4) else [0.25] * len(completions)

    right_for_a_while.calls = 0
    steps = WARN_AFTER + 5
    with caplog.at_level(logging.WARNING, logger="canon_trl"):
        trainer = trained(tmp_path, [half_right, right_for_a_while, nothing], max_steps=steps)
    counts = [entry["rewards/right_for_a_while/constant_rollouts"] for entry in logged(trainer)]
    assert counts == [1, 2, 0, 0, *range(1, steps - 3)]
    assert [entry["rewards/half_right/constant_rollouts"] for entry in logged(trainer)] == [0] * steps
    assert [entry["rewards/nothing/constant_rollouts"] for entry in logged(trainer)] == [*range(1, steps + 1)]
    warnings = [record.getMessage() for record in caplog.records if "teaches nothing" in record.getMessage()]
    assert len(warnings) == 2
    assert "reward function 'nothing' gave None to every response of the last 10 rollouts" in warnings[0]
    assert "reward function 'right_for_a_while' gave 0.25 to every response of the last 10 rollouts" in warnings[1]


def test_evaluation_rollouts_are_not_counted(tmp_path):
    def constant(completions, **kwargs):
        return [1.0] * len(completions)

    options = {"reward_funcs": constant, "eval_dataset": TASK.dataset("test", 8)}
    trainer = make_trainer(tmp_path, trainer_options=options, eval_strategy="steps", eval_steps=1)
    trainer.train()
    counts = [entry["rewards/constant/constant_rollouts"] for entry in logged(trainer)]
    assert counts == [1, 2, 3]
    assert not any("eval_rewards/constant/constant_rollouts" in entry for entry in trainer.state.log_history)


def test_the_count_of_constant_rewards_is_resumed(tmp_path):
    def constant(completions, **kwargs):
        return [1.0] * len(completions)

    options = {"trainer_options": {"reward_funcs": constant}, "save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path, **options).train()
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logged(resumed)[-1]["rewards/constant/constant_rollouts"] == 3

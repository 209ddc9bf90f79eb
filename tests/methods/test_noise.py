"""A verifier that errs: how often, for which responses, and what it rejects."""

import random

import pytest

from canon_trl.tasks.noise import flipped, measured, uniform


def accuracy(completions, **columns):
    return [float(text == "right") for text in completions]


def score(function, texts, prompts=None, ids=None):
    prompts = prompts or [f"prompt {index}" for index in range(len(texts))]
    return function(completions=texts, prompts=prompts, completion_ids=ids or [[1, 2]] * len(texts))


TEXTS = ["right", "wrong"] * 2000


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35])
def test_right_and_wrong_responses_are_flipped_with_the_same_probability(share):
    rewards = score(flipped(accuracy, share), TEXTS)
    # standard error of a share of 2,000: at most 0.011
    assert rewards[::2].count(0.0) / 2000 == pytest.approx(share, abs=0.04)
    assert rewards[1::2].count(1.0) / 2000 == pytest.approx(share, abs=0.04)


def test_flips_depend_on_the_response_and_not_on_its_place():
    prompts = [f"prompt {index}" for index in range(200)]
    first = dict(zip(prompts, score(flipped(accuracy, 0.35), ["right"] * 200, prompts), strict=True))
    random.Random(0).shuffle(prompts)
    again = dict(zip(prompts, score(flipped(accuracy, 0.35), ["right"] * 200, prompts), strict=True))
    assert first == again
    half = score(flipped(accuracy, 0.35), ["right"] * 100, prompts[:100])  # as on one rank of two
    assert half == [again[prompt] for prompt in prompts[:100]]
    assert first != dict(zip(prompts, score(flipped(accuracy, 0.35, seed=1), ["right"] * 200, prompts), strict=True))


def test_equal_responses_to_a_prompt_are_judged_independently():
    rewards = score(flipped(accuracy, 0.35), ["right"] * 2000, ["one"] * 2000)
    assert rewards.count(0.0) / 2000 == pytest.approx(0.35, abs=0.04)


def test_the_tokens_and_messages_count():
    conversation = [{"role": "user", "content": "one"}]
    for prompts, ids in (
        (["one"] * 200, [[index] for index in range(200)]),
        ([conversation] * 200, [[index] for index in range(200)]),
    ):
        rewards = score(flipped(accuracy, 0.35), ["right"] * 200, prompts, ids)
        assert rewards.count(0.0) / 200 == pytest.approx(0.35, abs=0.12)


def test_the_numbers_are_uniform():
    numbers = sorted(uniform(str(index)) for index in range(1000))
    assert 0 <= numbers[0] and numbers[-1] < 1
    assert all(abs(number - index / 1000) < 0.06 for index, number in enumerate(numbers))  # Kolmogorov-Smirnov


def test_flips_do_not_change_between_releases():
    found = score(flipped(accuracy, 0.35, seed=3), ["right"] * 8)
    assert found == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]


def test_names_and_unscored_responses():
    def some(completions, **columns):
        return [None, 1, 0.0]

    noisy = flipped(some, 0.0)
    assert noisy.__name__ == "some" and measured(some).__name__ == "true_some"
    assert score(noisy, ["a", "b", "c"]) == [None, 1.0, 0.0]
    assert score(measured(some), ["a", "b", "c"]) == [None, 1, 0.0]
    assert score(flipped(some, 0.49), ["a", "b", "c"])[0] is None


def test_a_graded_reward_is_rejected():
    def graded(completions, **columns):
        return [1.0, 0.5]

    with pytest.raises(ValueError, match=r"reward_flip=0.1 needs .* of 0 or 1, but 'graded' gave 0.5 to completion 1"):
        score(flipped(graded, 0.1), ["a", "b"])


@pytest.mark.parametrize("share", [0.5, 1, -0.1, float("nan")])
def test_impossible_shares(share):
    with pytest.raises(ValueError, match=r"share=.* must lie in \[0, 0.5\)"):
        flipped(accuracy, share)


def test_asynchronous_functions_and_models_are_rejected():
    async def slow(completions, **columns):
        return [1.0]

    for function in (slow, "reward/model"):
        with pytest.raises(ValueError, match="needs a synchronous reward function, not"):
            flipped(function, 0.1)

"""Rewards for agreement within a group: cases by hand, ties, missing answers, and how answers are found in text."""

import pytest
import torch

from canon_trl.policy_rewards import majority_vote_reward, self_consistency_reward
from canon_trl.policy_rewards.answers import (
    NO_ANSWER,
    agreement,
    answer_id,
    boxed_or_number,
    count_votes,
    extract_ids,
    find_extractor,
    written_text,
)

BOTH = pytest.mark.parametrize("reward", [self_consistency_reward, majority_vote_reward])
NONE = NO_ANSWER
# Three equal answers; two and two; all different; one answer and no others; no answer at all.
GROUPS = torch.tensor([[5, 5, 7, 5], [5, 7, 7, 5], [1, 2, 3, 4], [NONE, 9, NONE, NONE], [NONE] * 4])


def rewards(reward, groups):
    """The rewards of all responses, `(P, G)`."""
    of_group = groups.repeat_interleave(groups.shape[1], dim=0)
    return reward(groups.flatten(), of_group).view(groups.shape)


def test_self_consistency_by_hand():
    assert rewards(self_consistency_reward, GROUPS).tolist() == [
        [0.75, 0.75, 0.25, 0.75],
        [0.5, 0.5, 0.5, 0.5],
        [0.25, 0.25, 0.25, 0.25],
        [0.0, 0.25, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ]


def test_majority_vote_by_hand():
    assert rewards(majority_vote_reward, GROUPS).tolist() == [
        [1.0, 1.0, 0.0, 1.0],
        [1.0, 1.0, 1.0, 1.0],
        [1.0, 1.0, 1.0, 1.0],
        [0.0, 1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
    assert rewards(majority_vote_reward, torch.tensor([[NONE, 9, 9, NONE]])).tolist() == [[0.0, 1.0, 1.0, 0.0]]


@BOTH
def test_a_group_of_one(reward):
    assert rewards(reward, torch.tensor([[3], [NONE]])).tolist() == [[1.0], [0.0]]


@BOTH
def test_the_order_of_the_responses_does_not_matter(reward):
    groups = torch.randint(-1, 3, (20, 8), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rewards(reward, groups[:, order]), rewards(reward, groups)[:, order])
    assert reward(groups[:, 0], groups).dtype == torch.float32


def test_votes_by_hand():
    assert count_votes(GROUPS).tolist() == [[3, 3, 1, 3], [2, 2, 2, 2], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_agreement_by_hand():
    numbers = {name: round(float(number), 6) for name, number in agreement(GROUPS).items()}
    # 13 of 20 answered; most frequent answers 3, 2, 1, 1 and 0 of 4; 5 occurs five times
    assert numbers == {"answered": 13 / 20, "majority_share": 7 / 20, "one_answer_share": 5 / 20}
    nothing = {name: float(number) for name, number in agreement(GROUPS[4:]).items()}
    assert nothing == {"answered": 0.0, "majority_share": 0.0, "one_answer_share": 0.0}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{3}, then \boxed{ x + 1 }, 5", "x+1"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"so \boxed{1,000}", "1000"),
        (r"\boxed{0.50}", "1/2"),
        (r"\boxed{}", None),
        (r"\boxed{never closed, 7", "7"),
        ("12345#7", "7"),
        ("it is -3.50.", "-7/2"),
        ("2/4 of it", "1/2"),
        ("5-3", "3"),
        ("x=-3", "-3"),
        ("1/0", "1/0"),
        ("1,234,567", "1234567"),
        ("f(2)-4", "4"),
        ("no number", None),
        ("", None),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_boxed_or_number(text, answer):
    assert boxed_or_number(text) == answer


def test_a_long_text_is_read_quickly():
    for text in ("1," * 50_000, "-" * 100_000, r"\boxed{" * 20_000, "1/" * 50_000, "," * 100_000):
        boxed_or_number(text)


def test_numbers_of_answers():
    assert answer_id("42") == 3159871589620855869, "the same in every process"
    assert answer_id("42") == answer_id(" 42\n") != answer_id("4 2")
    assert answer_id(None) == answer_id("") == answer_id("  ") == NO_ANSWER
    assert answer_id("\ud800") != NO_ANSWER, "half of a character that a tokenizer cut"
    many = [answer_id(str(number)) for number in range(10_000)]
    assert len(set(many)) == 10_000 and min(many) >= 0 and max(many) < 2**63


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("plain", "plain"),
        ([{"role": "assistant", "content": "first"}, {"role": "assistant", "content": "last"}], "last"),
        ([{"role": "assistant", "content": "asked"}, {"role": "tool", "content": "7"}], "asked"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "ab"),
        ([], ""),
    ],
)
def test_the_text_that_the_model_wrote(completion, text):
    assert written_text(completion) == text


def test_extractors():
    assert find_extractor("boxed_or_number") is boxed_or_number
    assert find_extractor("canon_trl.tasks.arithmetic:answer_of")("1#2") == "2"
    ids = extract_ids(boxed_or_number, ["so 7", r"\boxed{7.0}", "none", [{"role": "assistant", "content": "8"}]])
    assert ids == [answer_id("7"), answer_id("7"), NO_ANSWER, answer_id("8")]
    with pytest.raises(TypeError, match="answer_extractor returned 1 for completion 1; it must return text or None"):
        extract_ids(lambda text: len(text) or None, ["", "a"])
    with pytest.raises(
        ValueError, match=r"answer_extractor='box_or_number' is unknown \(did you mean 'boxed_or_number'\?\)"
    ):
        find_extractor("box_or_number")


def test_math_verify_finds_equal_answers():
    pytest.importorskip("math_verify")
    extract = find_extractor("math_verify")
    first, second, other = extract_ids(extract, [r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{2}"])
    assert first == second != other

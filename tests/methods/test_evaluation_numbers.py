"""Numbers of an evaluation by hand, and answers in mathematics."""

import numpy as np
import pytest
from recipe_runs import MATHS
from trl.rewards import accuracy_reward

from canon_trl.evaluation.answers import math_answer
from canon_trl.evaluation.responses import Judged, ResponseRecorder, is_right, summarise
from canon_trl.sampling.samplers import Response
from canon_trl.sampling.scoring import Scorer


class Texts:
    """A tokenizer whose token ids are indices of these texts."""

    TEXTS = [r"so \boxed{3\sqrt{13}}", r"it is $\boxed{p-q}$", r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", "no idea"]

    def batch_decode(self, ids, skip_special_tokens):
        return [self.TEXTS[row[0]] for row in ids]


def test_scores_and_votes_in_mathematics():
    """Right answers count once the reference is between dollar signs, and equal answers vote together."""
    rows = [
        {"prompt": [{"role": "user", "content": row["question"]}], "solution": f"${row['target']}$"} for row in MATHS
    ]
    rows.append(rows[0] | {"solution": "$$"})  # a reference that cannot be parsed
    given = [[0, 4, 4], [1, 1, 2], [2, 3, 0], [0, 0, 0]]
    responses = [[Response([text] * 2, False, 0.5) for text in texts] for texts in given]
    records = ResponseRecorder(Scorer([accuracy_reward], Texts()), math_answer)(rows, responses)
    assert [record["rewards"] for record in records] == [[1, 0, 0], [1, 1, 0], [1, 1, 0], [None] * 3]
    assert records[0]["answers"] == ["3*sqrt(13)", None, None]
    assert records[2]["answers"] == ["1/2", "1/2", "3*sqrt(13)"]
    numbers = summarise(records, pass_ks=[1, 2], majority_ks=[3])
    assert (numbers["num_prompts"], numbers["unscored_prompts"]) == (3, 1)
    assert numbers["avg"] == pytest.approx(5 / 9)
    assert numbers["pass_at_k"]["2"]["mean"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert numbers["majority_at_k"]["3"]["mean"] == 1
    bare = accuracy_reward([[{"content": Texts.TEXTS[0]}], [{"content": Texts.TEXTS[1]}]], [r"3\sqrt{13}", "p - q"])
    assert bare == [0.0, None], "why the template exists"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1/2}", "1/2"),
        (r"\boxed{0.50}", "1/2"),
        (r"\boxed{x+1}", "x + 1"),
        (r"\boxed{1+x}", "x + 1"),
        (r"\boxed{1,000}", "1000"),
        (r"\boxed{\text{Evelyn}}", "evelyn"),
        ("I do not know", None),
        ("", None),
    ],
)
def test_answers_in_mathematics(text, answer):
    assert math_answer(text) == answer


def test_numbers_by_hand():
    records = [
        {"rewards": [1.0, 0.0], "lengths": [4, 2], "truncated": [False, True], "entropies": [0.5, 2.0]},
        {"rewards": [2.0, None], "lengths": [6, 8], "truncated": [False, False], "entropies": [1.0, 0.0]},
        {"rewards": [None, None], "lengths": [99, 99], "truncated": [True, True], "entropies": [9.0, 9.0]},
    ]
    judged = Judged.of(records, threshold=1.0)
    assert judged.correct.tolist() == [[True, False], [True, False]]
    assert (judged.unscored_prompts, judged.unscored_responses) == (1, 1)
    assert judged.describe() == {
        "length": 5.0,
        "length_right": 5.0,
        "length_wrong": 5.0,
        "median_length_right": 5.0,
        "median_length_wrong": 5.0,
        "truncated": 0.25,
        "entropy": (0.5 * 4 + 2 * 2 + 1 * 6) / 20,
        "entropy_right": (0.5 * 4 + 1 * 6) / 10,
        "entropy_wrong": (2 * 2 + 0 * 8) / 10,
        "tokens_per_right_answer": 10.0,
    }
    with pytest.raises(ValueError, match="none of the 1 prompts was scored"):
        Judged.of(records[2:], threshold=1.0)


@pytest.mark.parametrize("answer_of", [None, str.upper])
@pytest.mark.parametrize("keep_text", [False, True])
def test_texts_and_answers_are_kept_on_request(answer_of, keep_text):
    class Letters:
        def batch_decode(self, ids, skip_special_tokens):
            return ["abc"[row[0]] for row in ids]

    score = Scorer([lambda completions, **kwargs: [1.0] * len(completions)], Letters())
    responses = [[Response([1], False, 0.5), Response([2], False, 0.5)]]
    (record,) = ResponseRecorder(score, answer_of, keep_text)([{"prompt": "?"}], responses)
    assert record.get("responses") == (["b", "c"] if keep_text else None)
    assert record.get("answers") == (["B", "C"] if answer_of else None)


@pytest.mark.parametrize(
    ("reward", "unknown"),
    [
        (1.0, {"length_wrong", "median_length_wrong", "entropy_wrong"}),
        (0.0, {"length_right", "median_length_right", "entropy_right", "tokens_per_right_answer"}),
    ],
)
def test_the_mean_of_nothing_is_none(reward, unknown):
    record = {"rewards": [reward], "lengths": [4], "truncated": [False], "entropies": [0.5]}
    numbers = Judged.of([record], threshold=1.0).describe()
    assert {name for name, value in numbers.items() if value is None} == unknown


@pytest.mark.parametrize(
    "weights", [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1] * 10, [1 / 3, 1 / 3, 1 / 3], [0.9, 0.2, -0.1]]
)
def test_a_response_with_full_rewards_is_right(weights):
    """The weights add up to 1, up to rounding."""
    functions = [lambda completions, **kwargs: [float(text != "no idea") for text in completions]] * len(weights)
    rows = [{"prompt": "?"}]
    responses = [[Response([2, 2], False, 0.5), Response([4], False, 0.5)]]
    records = ResponseRecorder(Scorer(functions, Texts(), weights))(rows, responses)
    assert Judged.of(records, threshold=1.0).correct.tolist() == [[True, False]]
    assert summarise(records, pass_ks=[2], majority_ks=[])["avg"] == 0.5


def test_threshold_of_a_right_response():
    """Rewards may miss the threshold by rounding, also in float32."""
    in_float32 = float(np.float32(0.7) + np.float32(0.2) + np.float32(0.1) - np.float32(1e-7))
    given = [1.0, 0.9999999999999999, in_float32, 0.9999, 2.0, None, float("nan")]
    assert in_float32 < 1
    assert is_right(given, 1.0).tolist() == [True, True, True, False, True, False, False]
    assert is_right([-0.1 - 0.2, -0.31], -0.3).tolist() == [True, False]
    assert is_right([0.0, 1e-9], 1e-9).tolist() == [False, True]
    assert is_right([0.0, -1e-9], 0.0).tolist() == [True, False]

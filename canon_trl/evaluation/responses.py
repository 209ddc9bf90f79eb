"""What is kept of every response, and the numbers that describe a model by them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from canon_trl.evaluation.estimates import avg_at_k, majority_at_k, mean_share, pass_at_k
from canon_trl.sampling.samplers import Response
from canon_trl.sampling.scoring import Scorer

# The columns of a record, each with one entry a response.
COLUMNS = ("rewards", "lengths", "truncated", "entropies", "answers", "responses")
TOLERANCE = 1e-6  # share of the threshold; the rounding of float32 rewards and of their sums stays far below it


def is_right(rewards: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Whether weighted rewards reach the threshold, or miss it by no more than the rounding of a sum.

    reward >= threshold - 1e-6 |threshold|: with the weights 0.7, 0.2 and 0.1, three rewards of 1 add up to
    0.9999999999999999 in floats, and reach 1.

    Args:
        rewards: of responses, any shape; `None` or NaN where a response was not scored, which is not right.
        threshold: the least weighted reward of a right response.
    """
    return np.asarray(rewards, dtype=np.float64) >= threshold - TOLERANCE * abs(threshold)


@dataclass(frozen=True)
class ResponseRecorder:
    """Makes a record of the responses to a prompt: their rewards, lengths and so on, see `COLUMNS`.

    Args:
        score: gives the rewards.
        answer_of: finds the answer in a response's text, or `None`; without it records have no `answers`.
        keep_text: whether records have `responses`, the texts.
    """

    score: Scorer
    answer_of: Callable[[str], str | None] | None = None
    keep_text: bool = False

    def __call__(self, rows: list[dict[str, Any]], responses: Sequence[Sequence[Response]]) -> list[dict[str, Any]]:
        return [
            self._record(given, rewards) for given, rewards in zip(responses, self.score(rows, responses), strict=True)
        ]

    def _record(self, responses: Sequence[Response], rewards: list[float | None]) -> dict[str, Any]:
        record: dict[str, Any] = {
            "rewards": rewards,
            "lengths": [len(response.ids) for response in responses],
            "truncated": [response.truncated for response in responses],
            "entropies": [response.entropy for response in responses],
        }
        if self.answer_of is not None or self.keep_text:
            texts = self.score.decode(response.ids for response in responses)
        if self.answer_of is not None:
            record["answers"] = [self.answer_of(text) for text in texts]
        if self.keep_text:
            record["responses"] = texts
        return record


@dataclass(frozen=True)
class Judged:
    """The records of P prompts with n responses each, by what was measured.

    A prompt is left out if none of its responses could be scored, for example where the reference answer cannot be
    parsed. If some could, the others are not right.

    Attributes:
        correct: `(P, n)`, whether the reward reaches the threshold, see [`is_right`].
        lengths: `(P, n)`, tokens.
        truncated: `(P, n)`.
        entropies: `(P, n)`, mean over the tokens of a response, in nats.
        answers: n a prompt, `None` where there is none; or `None` where nothing extracts them.
        unscored_prompts: how many are left out.
        unscored_responses: how many of those that are left have no reward.
    """

    correct: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray
    entropies: np.ndarray
    answers: list[list[str | None]] | None
    unscored_prompts: int
    unscored_responses: int

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], *, threshold: float) -> "Judged":
        """Judge records by a threshold.

        Raises:
            ValueError: no prompt was scored.
        """
        scored = [record for record in records if any(reward is not None for reward in record["rewards"])]
        if not scored:
            raise ValueError(
                f"none of the {len(records)} prompts was scored: every reward is None. Reward functions say so where "
                "they cannot parse the reference answer; look at answer_column and answer_template"
            )
        rewards = np.array([record["rewards"] for record in scored], dtype=np.float64)
        return cls(
            correct=is_right(rewards, threshold),
            lengths=np.array([record["lengths"] for record in scored]),
            truncated=np.array([record["truncated"] for record in scored]),
            entropies=np.array([record["entropies"] for record in scored], dtype=np.float64),
            answers=[record["answers"] for record in scored] if "answers" in scored[0] else None,
            unscored_prompts=len(records) - len(scored),
            unscored_responses=int(np.isnan(rewards).sum()),
        )

    @property
    def num_samples(self) -> int:
        return int(self.correct.shape[1])

    def avg(self) -> np.ndarray:
        """avg@n, one a prompt."""
        return avg_at_k(self.num_samples, self.correct.sum(axis=1))

    def pass_at(self, k: int) -> np.ndarray:
        """pass@k, one a prompt."""
        return pass_at_k(self.num_samples, self.correct.sum(axis=1), k)

    def majority_at(self, k: int) -> np.ndarray:
        """majority@k, one a prompt.

        Raises:
            ValueError: nothing extracts answers.
        """
        if self.answers is None:
            raise ValueError(f"majority@{k} needs answers, and the records have none")
        return majority_at_k(self.answers, self.correct, k)

    def describe(self) -> dict[str, float | None]:
        """Numbers over all responses; `None` where there is no response of that kind.

        The entropy is the mean over all tokens, not over responses. So it is a ratio of sums that are both unbiased,
        also where the surprisal stands in for the entropy; a mean over responses would not be, as a response's length
        depends on the tokens that were drawn.
        """
        right, wrong = self.lengths[self.correct], self.lengths[~self.correct]
        return {
            "length": float(self.lengths.mean()),
            "length_right": float(right.mean()) if right.size else None,
            "length_wrong": float(wrong.mean()) if wrong.size else None,
            "median_length_right": float(np.median(right)) if right.size else None,
            "median_length_wrong": float(np.median(wrong)) if wrong.size else None,
            "truncated": float(self.truncated.mean()),
            "entropy": float((self.entropies * self.lengths).sum() / self.lengths.sum()),
            "tokens_per_right_answer": float(self.lengths.sum() / right.size) if right.size else None,
        }


def summarise(
    records: Sequence[Mapping[str, Any]],
    *,
    pass_ks: Sequence[int],
    majority_ks: Sequence[int],
    threshold: float = 1.0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """All numbers of a benchmark, fit for JSON, with intervals over prompts, see [`mean_share`].

    Args:
        records: of a [`ResponseRecorder`].
        pass_ks: the k of pass@k.
        majority_ks: the k of majority@k.
        threshold: the least reward of a right response, see [`is_right`].
        confidence: of the intervals.

    Returns:
        `num_prompts`, `num_samples`, `unscored_prompts`, `unscored_responses`; `avg` with `avg_interval`; `pass_at_k`
        and `majority_at_k` by k, as a string; and what [`Judged.describe`] gives. A bound that cannot be had is
        `None`, and so is `majority_at_k` without answers.

    Raises:
        ValueError: as for [`Judged.of`], and for a k above n.
    """
    judged = Judged.of(records, threshold=threshold)

    def estimate(values: np.ndarray) -> dict[str, float | None]:
        numbers = asdict(mean_share(values, confidence=confidence))
        return {name: None if np.isnan(number) else number for name, number in numbers.items()}

    avg = estimate(judged.avg())
    return {
        "num_prompts": len(judged.correct),
        "num_samples": judged.num_samples,
        "unscored_prompts": judged.unscored_prompts,
        "unscored_responses": judged.unscored_responses,
        "avg": avg.pop("mean"),
        "avg_interval": avg,
        "pass_at_k": {str(k): estimate(judged.pass_at(k)) for k in pass_ks},
        "majority_at_k": (
            None if judged.answers is None else {str(k): estimate(judged.majority_at(k)) for k in majority_ks}
        ),
        **judged.describe(),
    }

"""Records of responses, and the numbers that summarise them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from canon_trl.evaluation.estimates import avg_at_k, majority_at_k, mean_share, pass_at_k
from canon_trl.sampling.samplers import Response
from canon_trl.sampling.scoring import Scorer

# The columns of a record, each with one entry per response.
COLUMNS = ("rewards", "lengths", "truncated", "entropies", "answers", "responses")
TOLERANCE = 1e-6  # relative to the threshold; far above the rounding of float32 rewards and their sums


def is_right(rewards: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Mark the weighted rewards that reach the threshold, up to the rounding of a sum.

    reward >= threshold - 1e-6 |threshold|. For example, with the weights 0.7, 0.2 and 0.1, three rewards of 1 add up
    to 0.9999999999999999 in floating point, which reaches 1.

    Args:
        rewards: weighted rewards, any shape; `None` or NaN for a response that was not scored, which is not right.
        threshold: minimum weighted reward of a right response.
    """
    return np.asarray(rewards, dtype=np.float64) >= threshold - TOLERANCE * abs(threshold)


@dataclass(frozen=True)
class ResponseRecorder:
    """Makes a record of the responses to a prompt, with the columns in `COLUMNS`.

    Args:
        score: computes the rewards.
        answer_of: extracts the answer from a response's text, or returns `None`; without it records have no `answers`.
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
    """Arrays from the records of P prompts with n responses each.

    A prompt is left out if none of its responses was scored, for example if the reference answer cannot be parsed.
    Otherwise, its unscored responses are not right.

    Attributes:
        correct: `(P, n)`, whether the reward reaches the threshold, see [`is_right`].
        lengths: `(P, n)`, in tokens.
        truncated: `(P, n)`, whether the response was cut off at the maximum length.
        entropies: `(P, n)`, mean over the tokens of a response, in nats.
        answers: n per prompt, `None` for no answer; or `None` if answers were not extracted.
        unscored_prompts: number of prompts that are left out.
        unscored_responses: number of responses without a reward among the other prompts.
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
        """Judge records by a reward threshold.

        Raises:
            ValueError: no prompt was scored.
        """
        scored = [record for record in records if any(reward is not None for reward in record["rewards"])]
        if not scored:
            raise ValueError(
                f"none of the {len(records)} prompts was scored: every reward is None. Reward functions return None "
                "if they cannot parse the reference answer; check answer_column and answer_template"
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
        """avg@n, one per prompt."""
        return avg_at_k(self.num_samples, self.correct.sum(axis=1))

    def pass_at(self, k: int) -> np.ndarray:
        """pass@k, one per prompt."""
        return pass_at_k(self.num_samples, self.correct.sum(axis=1), k)

    def majority_at(self, k: int) -> np.ndarray:
        """majority@k, one per prompt; the records must have answers."""
        assert self.answers is not None
        return majority_at_k(self.answers, self.correct, k)

    def describe(self) -> dict[str, float | None]:
        """Return numbers over all responses; `None` if there is no response of that kind.

        Entropies are means over all tokens, not over responses. Both sums in that ratio are unbiased, also if the
        surprisal estimates the entropy. A mean over responses would not be, since the length of a response depends on
        its tokens.
        """
        right, wrong = self.lengths[self.correct], self.lengths[~self.correct]
        nats = self.entropies * self.lengths  # sums over the tokens of each response
        return {
            "length": float(self.lengths.mean()),
            "length_right": float(right.mean()) if right.size else None,
            "length_wrong": float(wrong.mean()) if wrong.size else None,
            "median_length_right": float(np.median(right)) if right.size else None,
            "median_length_wrong": float(np.median(wrong)) if wrong.size else None,
            "truncated": float(self.truncated.mean()),
            "entropy": float(nats.sum() / self.lengths.sum()),
            "entropy_right": float(nats[self.correct].sum() / right.sum()) if right.size else None,
            "entropy_wrong": float(nats[~self.correct].sum() / wrong.sum()) if wrong.size else None,
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
    """Return all numbers of a benchmark for JSON, with intervals over prompts, see [`mean_share`].

    Args:
        records: records of a [`ResponseRecorder`].
        pass_ks: the values of k for pass@k.
        majority_ks: the values of k for majority@k.
        threshold: minimum weighted reward of a right response, see [`is_right`].
        confidence: probability of the intervals.

    Returns:
        `num_prompts`, `num_samples`, `unscored_prompts`, `unscored_responses`; `avg` with `avg_interval`; `pass_at_k`
        and `majority_at_k` by k, as a string; and the numbers of [`Judged.describe`]. Unknown bounds are `None`, and
        so is `majority_at_k` without answers.

    Raises:
        ValueError: as for [`Judged.of`], or a k is above n.
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

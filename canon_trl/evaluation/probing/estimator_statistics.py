"""What the first steps of an advantage estimator would do, from the gradients of sampled responses."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from canon_trl.evaluation.estimates import Estimate
from canon_trl.evaluation.probing.resampling import Floats, estimate_of, pair_mean, ratio, resampled_counts

REFERENCE = "dr_grpo"
REWARD_GAIN = 0.01  # the gain of Dr.GRPO in the unit of `length` and `entropy`


@dataclass(frozen=True)
class EstimatorStatistics:
    """The gradient of an estimator in expectation over prompts and responses, and its noise.

    Response i of a prompt has the score v_i, the gradient of its log-probability. The estimator's gradient for the
    prompt is g = mean_i(A_i v_i). All means over pairs of prompts leave out the pairs of a prompt with itself.

    Attributes:
        groups_with_signal: share of groups with an advantage other than 0.
        magnitude: root mean square of the advantages relative to Dr.GRPO's.
        signal: |E[g]|^2 / E[|g|^2], the share of the gradient that prompts have in common. Unless the interval lies
            above 0, the direction of the estimator cannot be distinguished from noise in this sample.
        snr: signal to noise of a step, |E[g]|^2 over the variance of the mean of g over the prompts of the step.
        cosine: between E[g] and the policy gradient, the gradient of the expected reward.
        gain: first-order gain in expected reward for a step of a given size (root mean square, noise included),
            relative to Dr.GRPO. It says nothing about later steps.
        length: first-order change of the mean length in tokens, for a step on which Dr.GRPO gains 0.01 reward.
        entropy: the same for the mean token entropy, in nats.
    """

    groups_with_signal: float
    magnitude: float
    signal: Estimate
    snr: Estimate
    cosine: Estimate
    gain: Estimate
    length: Estimate
    entropy: Estimate


@dataclass(frozen=True)
class PolicyGradient:
    """The gradient of the expected reward, estimated from the sample.

    Attributes:
        signal: share of the squared norm that prompts have in common, see [`EstimatorStatistics`].
        found: whether its interval lies above 0. If not, nothing can be said about estimators.
    """

    signal: Estimate

    @property
    def found(self) -> bool:
        return self.signal.low > 0


def leave_one_out(values: ArrayLike) -> Floats:
    """Subtract the mean of the other responses of the group, `(P, G)`; NaN is left out and becomes 0.

    The products with the scores are unbiased for the gradient of the expected value.
    """
    given = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(given)
    count = known.sum(axis=1, keepdims=True)
    total = np.where(known, given, 0.0).sum(axis=1, keepdims=True)
    others = np.divide(total - given, count - 1, out=np.zeros_like(given), where=known & (count > 1))
    return np.where(known & (count > 1), given - others, 0.0)


def describe_estimators(
    scores: ArrayLike,
    rewards: ArrayLike,
    lengths: ArrayLike,
    surprisals: ArrayLike,
    advantages: Mapping[str, ArrayLike],
    *,
    prompts_per_step: int,
    per_token: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[PolicyGradient, dict[str, EstimatorStatistics]]:
    """Compute the statistics of estimators, see [`EstimatorStatistics`].

    The gradient of the mean token entropy H = E[s] / E[L] is (grad E[s] - H grad E[L]) / E[L], with s the surprisal of
    a whole response and L its length, so it also follows from the scores.

    Args:
        scores: `(P, G, D)`, the gradient of every response's log-probability, or a sketch that keeps inner products.
        rewards: `(P, G)`; NaN for a response that was not scored.
        lengths: `(P, G)`, in tokens.
        surprisals: `(P, G)`, -log p of the whole response in nats.
        advantages: `(P, G)` by the label of the estimator; Dr.GRPO's must be among them under `"dr_grpo"`.
        prompts_per_step: number of prompts per optimiser step, for the noise.
        per_token: whether every token of the batch has the same weight in the loss, as with `loss_type="dr_grpo"`;
            False gives every response the same weight, as `"grpo"` does.
        confidence: probability of the intervals, over prompts.
        seed: seed of the bootstrap.

    Raises:
        ValueError: there are fewer than two prompts or two responses per prompt.
    """
    vectors, sizes = np.asarray(scores), np.asarray(lengths, dtype=np.float64)
    prompts, responses = vectors.shape[:2]
    if prompts < 2 or responses < 2:
        raise ValueError(f"{prompts} prompts with {responses} responses each; at least 2 of both are needed")
    surprise = np.asarray(surprisals, dtype=np.float64)
    entropy = (surprise - surprise.sum() / sizes.sum() * sizes) / sizes.mean()
    targets = {
        name: _gradients(leave_one_out(values), vectors)
        for name, values in (("reward", rewards), ("length", sizes), ("entropy", entropy))
    }
    weights = np.ones_like(sizes) if per_token else 1 / sizes
    counts = resampled_counts(prompts, seed=seed)

    def measured(gradients: Floats) -> _Measured:
        return _Measured.of(gradients, targets, counts, prompts_per_step)

    def estimate(values: Floats) -> Estimate:
        return estimate_of(values, confidence=confidence)

    def of_estimator(label: str) -> _Measured:
        weighted = np.nan_to_num(np.asarray(advantages[label], dtype=np.float64)) * weights
        return measured(_gradients(weighted, vectors))

    truth, reference = measured(targets["reward"]), of_estimator(REFERENCE)
    size_of_reference = _root_mean_square(advantages[REFERENCE])

    def statistics(label: str) -> EstimatorStatistics:
        own = of_estimator(label)
        relative = {name: ratio(own.change(name), reference.change("reward")) for name in targets}
        return EstimatorStatistics(
            groups_with_signal=float((np.nan_to_num(np.asarray(advantages[label])) != 0).any(axis=1).mean()),
            magnitude=_root_mean_square(advantages[label]) / size_of_reference if size_of_reference else np.nan,
            signal=estimate(ratio(own.squared_norm, own.power)),
            snr=estimate(ratio(own.squared_norm, own.noise)),
            cosine=estimate(own.cosine(truth)),
            gain=estimate(relative["reward"]),
            length=estimate(REWARD_GAIN * relative["length"]),
            entropy=estimate(REWARD_GAIN * relative["entropy"]),
        )

    gradient = PolicyGradient(estimate(ratio(truth.squared_norm, truth.power)))
    return gradient, {label: statistics(label) for label in advantages}


@dataclass(frozen=True)
class _Measured:
    """The gradient of an estimator in the sample and in every bootstrap draw, `(draws,)` each.

    Attributes:
        squared_norm: |E[g]|^2.
        power: E[|g|^2], noise included.
        noise: variance of the gradient of a step.
        products: E[g] . E[t] by target t.
    """

    squared_norm: Floats
    power: Floats
    noise: Floats
    products: dict[str, Floats]

    @classmethod
    def of(
        cls, gradients: Floats, targets: Mapping[str, Floats], counts: Floats, prompts_per_step: int
    ) -> "_Measured":
        own = gradients @ gradients.T
        squared_norm = pair_mean(own, counts)
        power = counts @ np.diag(own) / counts.sum(axis=1)
        noise = (power - squared_norm) / prompts_per_step
        products = {name: pair_mean(gradients @ target.T, counts) for name, target in targets.items()}
        return cls(squared_norm, power, noise, products)

    def change(self, target: str) -> Floats:
        """Return the first-order change of a target on a step of size 1."""
        return ratio(self.products[target], np.sqrt((self.squared_norm + self.noise).clip(min=0)))

    def cosine(self, truth: "_Measured") -> Floats:
        found = (self.squared_norm > 0) & (truth.squared_norm > 0)
        sizes = np.sqrt(np.where(found, self.squared_norm * truth.squared_norm, 0.0))
        return ratio(self.products["reward"], sizes).clip(-1, 1)  # three separate estimates, so it may leave [-1, 1]


def _gradients(advantages: Floats, scores: Floats) -> Floats:
    """Return mean_i(A_i v_i), one per prompt, `(P, D)`."""
    weighted = advantages[:, None, :].astype(scores.dtype) @ scores  # in the precision of the scores, to save memory
    gradients: Floats = weighted[:, 0].astype(np.float64) / scores.shape[1]
    return gradients


def _root_mean_square(advantages: ArrayLike) -> float:
    return float(np.sqrt((np.nan_to_num(np.asarray(advantages, dtype=np.float64)) ** 2).mean()))

"""What the first steps of an advantage estimator would do, from the gradients of sampled responses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from canon_trl.evaluation.estimates import Estimate
from canon_trl.evaluation.probing.resampling import Floats, bootstrapped, pair_mean, ratio

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
    estimated = {
        label: _gradients(np.nan_to_num(np.asarray(each, dtype=np.float64)) * weights, vectors)
        for label, each in advantages.items()
    }

    def estimate(statistic: Callable[[Floats], Floats]) -> Estimate:
        return bootstrapped(statistic, prompts, confidence=confidence, seed=seed)

    truth = _Products(targets["reward"], targets, prompts_per_step)
    reference = _Products(estimated[REFERENCE], targets, prompts_per_step)
    size_of_reference = _root_mean_square(advantages[REFERENCE])

    def statistics(label: str) -> EstimatorStatistics:
        own = _Products(estimated[label], targets, prompts_per_step)
        relative = [_ratio_of(own, name, reference) for name in ("reward", "length", "entropy")]
        return EstimatorStatistics(
            groups_with_signal=float((np.nan_to_num(np.asarray(advantages[label])) != 0).any(axis=1).mean()),
            magnitude=_root_mean_square(advantages[label]) / size_of_reference if size_of_reference else np.nan,
            signal=estimate(own.signal),
            snr=estimate(own.snr),
            cosine=estimate(lambda counts: own.cosine(truth, counts)),
            gain=estimate(relative[0]),
            length=_scaled(estimate(relative[1]), REWARD_GAIN),
            entropy=_scaled(estimate(relative[2]), REWARD_GAIN),
        )

    return PolicyGradient(estimate(truth.signal)), {label: statistics(label) for label in advantages}


class _Products:
    """The inner products of an estimator's gradients with each other and with the gradients of targets."""

    def __init__(self, gradients: Floats, targets: Mapping[str, Floats], prompts_per_step: int) -> None:
        self._own = gradients @ gradients.T
        self._with = {name: gradients @ target.T for name, target in targets.items()}
        self._prompts_per_step = prompts_per_step

    def squared_norm(self, counts: Floats) -> Floats:
        """Return |E[g]|^2."""
        return pair_mean(self._own, counts)

    def power(self, counts: Floats) -> Floats:
        """Return E[|g|^2], noise included."""
        power: Floats = counts @ np.diag(self._own) / counts.sum(axis=1)
        return power

    def signal(self, counts: Floats) -> Floats:
        return ratio(self.squared_norm(counts), self.power(counts))

    def noise(self, counts: Floats) -> Floats:
        """Return the variance of a step's gradient."""
        noise: Floats = (self.power(counts) - self.squared_norm(counts)) / self._prompts_per_step
        return noise

    def snr(self, counts: Floats) -> Floats:
        return ratio(self.squared_norm(counts), self.noise(counts))

    def change(self, target: str, counts: Floats) -> Floats:
        """Return the first-order change of a target on a step of size 1."""
        size = self.squared_norm(counts) + self.noise(counts)
        return ratio(pair_mean(self._with[target], counts), np.sqrt(size.clip(min=0)))

    def cosine(self, truth: "_Products", counts: Floats) -> Floats:
        product = self.squared_norm(counts) * truth.squared_norm(counts)
        found = (self.squared_norm(counts) > 0) & (truth.squared_norm(counts) > 0)
        cosine = ratio(pair_mean(self._with["reward"], counts), np.sqrt(np.where(found, product, 0.0)))
        return cosine.clip(-1, 1)  # the estimates of the three products are independent of each other


def _ratio_of(own: _Products, target: str, reference: _Products) -> Callable[[Floats], Floats]:
    """Return the change of a target relative to the gain of the reference; NaN where the reference gains nothing."""

    def relative(counts: Floats) -> Floats:
        return ratio(own.change(target, counts), reference.change("reward", counts))

    return relative


def _gradients(advantages: Floats, scores: Floats) -> Floats:
    """Return mean_i(A_i v_i), one per prompt, `(P, D)`."""
    weighted = advantages[:, None, :].astype(scores.dtype) @ scores  # in the precision of the scores, to save memory
    gradients: Floats = weighted[:, 0].astype(np.float64) / scores.shape[1]
    return gradients


def _root_mean_square(advantages: ArrayLike) -> float:
    return float(np.sqrt((np.nan_to_num(np.asarray(advantages, dtype=np.float64)) ** 2).mean()))


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(estimate.mean * factor, estimate.low * factor, estimate.high * factor)

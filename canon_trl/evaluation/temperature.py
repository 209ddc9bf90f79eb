"""Choose the temperature to train at by the entropy of the responses (https://huggingface.co/papers/2506.13284)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from canon_trl.sampling.samplers import Prompt, Sampler


@dataclass(frozen=True)
class SuggestedTemperature:
    """A temperature, and the entropy of the responses that were sampled at it, in nats per token."""

    temperature: float
    entropy: float


def suggest_temperature(
    sampler_at: Callable[[float], Sampler],
    prompts: Sequence[Prompt],
    *,
    target_entropy: float = 0.3,
    low: float = 0.5,
    high: float = 1.5,
    tolerance: float = 0.01,
    most_steps: int = 8,
    seed: int = 0,
) -> SuggestedTemperature:
    """Find the temperature at which sampled responses have a mean entropy of about 0.3 nats per token.

        T such that sum_it(H_it(T)) / tokens = target_entropy,    H(T) the entropy of softmax(logits / T)

    A rule of thumb of AceReason-Nemotron 1.1 for the start of training with reinforcement learning: explore enough,
    but not so much that responses become bad. Their 7B model, fine-tuned on long reasoning, was best at temperature
    0.85, where the entropy was 0.26 at first and 0.38 later. It was below 0.2 at temperature 0.6 and fell from 0.4 to
    0.22 at 1.0. The temperature of evaluation is another question; they evaluate at 0.6.

    The paper neither defines the entropy formally nor says how to search. Here it is the mean over all sampled tokens.
    The search halves [`low`, `high`] and samples anew at every temperature, since responses depend on it too; that
    takes up to `most_steps` + 2 rounds of sampling. For fixed responses the entropy rises with the temperature. For
    sampled ones it may fall where the temperature is so low that responses get stuck, so do not choose `low` too low.

    ```python
    suggest_temperature(
        lambda temperature: TransformersSampler(
            model, tokenizer, num_samples=4, max_new_tokens=1024, temperature=temperature, entropies=True
        ),
        prompts,
    )
    ```

    Args:
        sampler_at: makes a sampler of a temperature that computes entropies, such as `TransformersSampler`.
        prompts: a sample of the training prompts. The error of the entropy shrinks with the number of tokens.
        target_entropy: in nats per token.
        low, high: bounds of the search.
        tolerance: the search ends when the entropy is this close to the target.
        most_steps: maximum number of temperatures between the bounds.
        seed: seed of the samples, the same at all temperatures.

    Returns:
        The sampled temperature whose entropy is closest to the target.

    Raises:
        ValueError: the target is not between the entropies at `low` and `high`, an option is out of range, there is no
            prompt, or a sampler computes no entropies.
    """
    if not 0 < low < high:
        raise ValueError(f"low={low!r} and high={high!r} must be positive, the lower one first")
    for name, value in (("target_entropy", target_entropy), ("tolerance", tolerance)):
        if not value > 0:
            raise ValueError(f"{name}={value!r} must be positive")
    if not len(prompts):
        raise ValueError("prompts is empty")

    def measured(temperature: float) -> SuggestedTemperature:
        return SuggestedTemperature(temperature, mean_entropy(sampler_at(temperature), prompts, seed))

    bounds = [measured(low), measured(high)]
    if not bounds[0].entropy <= target_entropy <= bounds[1].entropy:
        raise ValueError(
            f"target_entropy={target_entropy!r} cannot be reached: the entropy is {bounds[0].entropy:.3g} at "
            f"temperature {low} and {bounds[1].entropy:.3g} at {high}; choose other bounds"
        )
    tried = list(bounds)
    for _ in range(most_steps):
        if min(abs(each.entropy - target_entropy) for each in tried) <= tolerance:
            break
        tried.append(measured((bounds[0].temperature + bounds[1].temperature) / 2))
        bounds[tried[-1].entropy > target_entropy] = tried[-1]
    return min(tried, key=lambda each: abs(each.entropy - target_entropy))


def mean_entropy(sample: Sampler, prompts: Sequence[Prompt], seed: int) -> float:
    """The mean entropy per token of one round of responses, in nats.

    Raises:
        ValueError: the sampler computes no entropies.
    """
    nats, tokens = 0.0, 0
    for responses in sample(prompts, seed):
        for response in responses:
            if response.entropy is None:
                raise ValueError("the sampler computes no entropies; make it with entropies=True")
            nats += response.entropy * len(response.ids)
            tokens += len(response.ids)
    return nats / tokens

"""The suggested temperature: by hand, with samplers of known entropy, and with a model."""

import math
from functools import partial

import pytest
import torch
from toy import TASK, base_model
from transformers import AutoTokenizer

from canon_trl.evaluation import suggest_temperature
from canon_trl.sampling.samplers import Response, TransformersSampler


def samplers(entropy_at, tried):
    """Samplers whose responses of 3 and 1 tokens have a mean entropy per token of `entropy_at(temperature)`."""

    def sampler_at(temperature):
        def sample(prompts, seed):
            tried.append(temperature)
            nats = 4 * entropy_at(temperature)
            return [[Response([0] * 3, entropy=nats / 3), Response([0], entropy=0.0)] for _ in prompts]

        return sample

    return sampler_at


def test_by_hand():
    """The entropy is T / 4, so that 0.3 nats are at 1.2, which halving finds in three steps up to 0.02."""
    tried = []
    found = suggest_temperature(samplers(lambda t: t / 4, tried), ["?"], low=0.5, high=1.5, tolerance=0.02)
    assert tried == [0.5, 1.5, 1.0, 1.25]
    assert (found.temperature, found.entropy) == (1.25, pytest.approx(0.3125))


def test_the_closest_temperature_is_returned():
    """Also if it is not the last one, and if steps run out before the tolerance is met."""
    tried = []
    found = suggest_temperature(
        samplers(lambda t: t / 4, tried), ["?"], low=0.5, high=1.5, tolerance=1e-9, most_steps=3
    )
    assert tried == [0.5, 1.5, 1.0, 1.25, 1.125]
    assert found.temperature == 1.25
    tried.clear()
    at_bound = suggest_temperature(samplers(lambda t: t / 4, tried), ["?"], low=1.2, high=2.0)
    assert (at_bound.temperature, tried) == (1.2, [1.2, 2.0])


def test_a_model_of_known_entropy():
    """Two tokens with logits 1 and 0: the entropy at T is that of the logistic function of 1 / T."""

    def entropy(temperature):
        p = 1 / (1 + math.exp(-1 / temperature))
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    found = suggest_temperature(
        samplers(entropy, []), ["?"], target_entropy=entropy(0.4), low=0.1, tolerance=1e-4, most_steps=40
    )
    assert found.temperature == pytest.approx(0.4, abs=1e-3)


def test_with_a_model():
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    sampler = partial(TransformersSampler, base_model(), tokenizer, num_samples=8, max_new_tokens=40, entropies=True)
    prompts = TASK.dataset("train", 16)["prompt"][:]

    def suggest():
        return suggest_temperature(lambda temperature: sampler(temperature=temperature), prompts, tolerance=0.03)

    found = suggest()
    assert 0.5 < found.temperature < 1.5
    assert found.entropy == pytest.approx(0.3, abs=0.03)
    again = sampler(temperature=found.temperature)(prompts, 0)
    responses = [response for given in again for response in given]
    nats = sum(response.entropy * len(response.ids) for response in responses)
    assert found.entropy == nats / sum(len(response.ids) for response in responses)
    torch.manual_seed(1)
    assert suggest() == found, "the draws depend on the seed only"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_entropy": 9.0},
            r"target_entropy=9\.0 cannot be reached: the entropy is 0\.125 at temperature 0\.5 and",
        ),
        ({"target_entropy": 0.01}, r"target_entropy=0\.01 cannot be reached"),
        ({"low": 1.0, "high": 0.5}, r"low=1\.0 and high=0\.5 must be positive, the lower one first"),
        ({"low": 0.0}, r"low=0\.0 and high=1\.5 must be positive"),
        ({"target_entropy": 0.0}, r"target_entropy=0\.0 must be positive"),
        ({"tolerance": -1.0}, r"tolerance=-1\.0 must be positive"),
        ({"prompts": []}, "prompts is empty"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ValueError, match=message):
        suggest_temperature(samplers(lambda t: t / 4, []), **({"prompts": ["?"]} | options))


def test_samplers_without_entropies_are_rejected():
    with pytest.raises(ValueError, match="the sampler computes no entropies; make it with entropies=True"):
        suggest_temperature(lambda temperature: lambda prompts, seed: [[Response([1])]], ["?"])

"""Sampling from transformers models: the distribution, end tokens, and finished rows."""

import pytest
import torch
from toy import TASK, base_model
from transformers import AutoTokenizer
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

from canon_trl.sampling import shared_prefix
from canon_trl.sampling.samplers import TransformersSampler


def test_sampling_with_transformers():
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    sample = TransformersSampler(base_model(), tokenizer, num_samples=3, max_new_tokens=12, top_k=5, top_p=0.9)
    prompts = ["7+8*3-9+4*6=", "1*2=", "9-9*1="]
    first, again = sample(prompts, 7), sample(prompts, 7)
    assert first == again != sample(prompts, 8)
    assert [len(responses) for responses in first] == [3, 3, 3]
    for responses in first:
        for response in responses:
            assert 1 <= len(response.ids) <= 12 and response.entropy is None
            ends = [token in (tokenizer.eos_token_id, tokenizer.pad_token_id) for token in response.ids]
            assert not any(ends[:-1])
            assert response.truncated == (not ends[-1]) and (ends[-1] or len(response.ids) == 12)


def test_greedy_sampling_matches_generate():
    """With top_k=1 the text is the same, although finished rows leave the batch."""
    tokenizer, model = AutoTokenizer.from_pretrained(TASK.model_path), base_model()
    prompts = [*TASK.dataset("test", 30)["prompt"], "1*2=", "9-9*1="]
    sampled = TransformersSampler(model, tokenizer, num_samples=2, max_new_tokens=40, top_k=1)(prompts, 0)
    assert len({len(responses[0].ids) for responses in sampled}) > 2, "the case needs different lengths"
    for prompt, responses in zip(prompts, sampled, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        written = model.generate(**ids, do_sample=False, max_new_tokens=40, pad_token_id=tokenizer.pad_token_id)
        assert [response.ids for response in responses] == [written[0, ids["input_ids"].shape[1] :].tolist()] * 2


def test_every_end_token_ends_a_response():
    """Those of the tokenizer and of the generation config."""
    tokenizer, model = AutoTokenizer.from_pretrained(TASK.model_path), base_model()
    model.generation_config.eos_token_id = mark = tokenizer.convert_tokens_to_ids("#")
    sample = TransformersSampler(model, tokenizer, num_samples=8, max_new_tokens=40, temperature=2.0)
    responses = [response for given in sample(TASK.dataset("test", 8)["prompt"][:], 0) for response in given]
    ends = {mark, tokenizer.eos_token_id}
    assert {response.ids[-1] for response in responses if not response.truncated} == ends
    assert not any(ends & {*response.ids[:-1]} for response in responses)


def test_samples_follow_the_models_distribution():
    """The share of each first token in many responses is its probability, at every temperature."""
    tokenizer, model = AutoTokenizer.from_pretrained(TASK.model_path), base_model()
    prompt = "7+8*3-9+4*6="
    with torch.no_grad():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    for temperature in (1.0, 2.0):
        options = {"num_samples": 4000, "max_new_tokens": 1, "temperature": temperature}
        (responses,) = TransformersSampler(model, tokenizer, **options)([prompt], 3)
        shares = torch.tensor([response.ids[0] for response in responses]).bincount(minlength=len(logits)) / 4000
        torch.testing.assert_close(shares, (logits / temperature).softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"temperature": 1.3, "top_k": 5, "top_p": 0.9}])
def test_entropies_match_the_sampling_distribution(options):
    """They match a pass over whole responses, and the mean surprisal of the sampled tokens."""
    tokenizer, model = AutoTokenizer.from_pretrained(TASK.model_path), base_model()
    prompts = TASK.dataset("test", 3)["prompt"][:]
    sample = TransformersSampler(model, tokenizer, num_samples=60, max_new_tokens=20, entropies=True, **options)
    entropy_sum = surprisal_sum = tokens = 0
    for prompt, responses in zip(prompts, sample(prompts, 1), strict=True):
        start = tokenizer(prompt)["input_ids"]
        for response in responses:
            ids = torch.tensor([start + response.ids])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(start) - 1 : -1] / options["temperature"]
            if "top_k" in options:
                logits = TopPLogitsWarper(0.9)(None, TopKLogitsWarper(5)(None, logits))
            log_probs = logits.log_softmax(-1)
            entropies = -(log_probs.exp() * log_probs.clamp(min=-1e9)).sum(-1)
            assert response.entropy == pytest.approx(entropies.mean().item(), abs=1e-5)
            entropy_sum += entropies.sum().item()
            surprisal_sum -= log_probs.gather(1, ids[0, len(start) :, None]).sum().item()
            tokens += len(response.ids)
    assert surprisal_sum / tokens == pytest.approx(entropy_sum / tokens, abs=0.05)


@pytest.fixture
def staying(monkeypatch):
    """Keep all rows in the batch until the last one ends."""
    monkeypatch.setattr(shared_prefix, "KEEP_UNTIL", 0.0)


def test_nothing_is_added_to_a_response_after_its_end(staying):
    """Neither tokens nor entropy, at a temperature where the tokens after an end are uncertain."""
    tokenizer, model = AutoTokenizer.from_pretrained(TASK.model_path), base_model()
    prompts = TASK.dataset("test", 3)["prompt"][:]
    sample = TransformersSampler(model, tokenizer, num_samples=20, max_new_tokens=20, temperature=3.0, entropies=True)
    lengths = set()
    for prompt, responses in zip(prompts, sample(prompts, 1), strict=True):
        start = tokenizer(prompt)["input_ids"]
        for response in responses:
            assert tokenizer.eos_token_id not in response.ids[:-1]
            assert response.truncated == (response.ids[-1] != tokenizer.eos_token_id)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([start + response.ids])).logits[0, len(start) - 1 : -1] / 3.0
            entropies = torch.distributions.Categorical(logits=logits).entropy()
            assert response.entropy == pytest.approx(entropies.mean().item(), abs=1e-5)
            lengths.add(len(response.ids))
    assert len(lengths) > 5, "the case needs different lengths"

"""The sampler of training: exact probabilities, the responses of `generate`, and how often prompts are processed."""

import itertools

import pytest
import torch
from toy import TASK, base_model
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from canon_trl.hook.shared_prefix import SharedPrefixSampler
from canon_trl.sampling import shared_prefix

PAD, END, LENGTH = 0, 1, 3


def settings(**options):
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
    ends = {"eos_token_id": [END], "pad_token_id": PAD}
    return GenerationConfig(do_sample=True, disable_compile=True, **(defaults | ends | options))


def four_token_model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 4, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, initializer_range=1.0)).eval()


def exact_probabilities(model, prompt, temperature):
    """The probability of every possible response, from plain forward passes."""
    found = {}
    for tokens in itertools.product(range(4), repeat=LENGTH):
        length = tokens.index(END) + 1 if END in tokens else LENGTH
        response = tokens[:length]
        if response not in found:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
            log_probs = (logits / temperature).log_softmax(dim=-1)
            found[response] = log_probs[range(length), list(response)].sum().exp().item()
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    return found


@pytest.mark.parametrize("keep_until", [0.0, 0.75, 1.0])
def test_every_response_has_its_exact_probability(monkeypatch, keep_until):
    monkeypatch.setattr(shared_prefix, "KEEP_UNTIL", keep_until)
    model, count, temperature = four_token_model(), 20_000, 1.3
    prompts = torch.tensor([[PAD, 2]] * count + [[3, 2]] * count)  # the first is padded
    attention = torch.tensor([[0, 1]] * count + [[1, 1]] * count)
    sampler = SharedPrefixSampler(model, frozenset({"log_probs", "entropies"}))
    torch.manual_seed(1)
    written = sampler.generate(prompts, attention, settings(temperature=temperature, max_new_tokens=LENGTH))
    assert torch.equal(written[:, :2], prompts)
    for prompt, first in (([2], 0), ([3, 2], count)):
        expected = exact_probabilities(model, prompt, temperature)
        counts = dict.fromkeys(expected, 0)
        samples = [sampler._samples.ids[row] for row in range(first, first + count)]
        for row, ids in enumerate(samples):
            counts[tuple(ids)] += 1
            if row < 50:
                log_prob = sampler._samples.values[first + row]["log_probs"].sum()
                assert log_prob.exp().item() == pytest.approx(expected[tuple(ids)], rel=1e-4)
        deviations = [(counts[each] - count * p) ** 2 / (count * p) for each, p in expected.items()]
        freedom = len(expected) - 1
        assert sum(deviations) < freedom + 4 * (2 * freedom) ** 0.5


def sampled_and_generated(prompts, samples, model=None, **options):
    """Prompts with responses from the sampler and from `generate`, with the same seed."""
    tokenizer, model = AutoTokenizer.from_pretrained(TASK.model_path), model or base_model()
    texts = [prompt for prompt in prompts for _ in range(samples)]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    config = settings(eos_token_id=[tokenizer.eos_token_id], max_new_tokens=40, **options)
    torch.manual_seed(3)
    sampled = SharedPrefixSampler(model, frozenset()).generate(**inputs, generation_config=config)
    after = torch.rand(1)
    torch.manual_seed(3)
    generated = model.generate(**inputs, generation_config=config)
    return sampled, generated, after.equal(torch.rand(1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.5, "top_p": 0.8},
        {"temperature": 2.0, "min_p": 0.05},
        {"repetition_penalty": 1.3, "top_p": 0.9},
    ],
    ids=str,
)
def test_a_seed_gives_the_responses_of_generate(options):
    """And leaves the random numbers where `generate` leaves them."""
    prompts = [*TASK.dataset("test", 5)["prompt"], "1*2=", "9-9*1="]
    sampled, generated, same_state = sampled_and_generated(prompts, 8, **options)
    assert torch.equal(sampled, generated) and same_state


def test_a_prompt_is_processed_once_and_finished_responses_are_dropped():
    model, sizes = base_model(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = TASK.dataset("test", 3)["prompt"][:]
    sampled_and_generated(prompts, 8, model)
    prefill = next(index for index, (_, width) in enumerate(sizes[1:], start=1) if width > 1)  # that of `generate`
    rows = [count for count, _ in sizes[:prefill]]
    assert rows[0] == 3 and rows[1] == 24 and rows[1:] == sorted(rows[1:], reverse=True) and rows[-1] < 18
    assert {count for count, _ in sizes[prefill:]} == {24}


def test_probabilities_that_are_nan_are_an_error():
    model = four_token_model()
    with torch.no_grad():
        model.lm_head.weight[2] = float("nan")
    prompts = torch.tensor([[2, 3]])
    with pytest.raises(RuntimeError, match="probabilities of the next token contain NaN"):
        SharedPrefixSampler(model, frozenset()).generate(prompts, torch.ones_like(prompts), settings(max_new_tokens=2))

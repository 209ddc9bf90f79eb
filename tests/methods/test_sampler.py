"""Rows of the sampler that have ended while others go on, and stay in the batch."""

import pytest
import torch
from toy import TASK, base_model
from transformers import AutoTokenizer

from canon_trl.sampling.samplers import TransformersSampler


@pytest.fixture
def staying(monkeypatch):
    """No row leaves the batch before all have ended."""
    monkeypatch.setattr(TransformersSampler, "KEEP_UNTIL", 0.0)


def test_nothing_is_added_to_a_response_after_its_end(staying):
    """Neither tokens nor entropy; at a temperature at which the model is in doubt about what follows an end."""
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

"""Sketched gradients of the probe, compared with the full gradients of single responses."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from canon_trl.advantages import a_grae_advantage, canon_advantage, dr_grpo_advantage
from canon_trl.evaluation.probing.estimator_statistics import describe_estimators
from canon_trl.evaluation.probing.gradients import batches, score_responses
from canon_trl.evaluation.probing.sketch import GradientSketch, find_layers, projection
from canon_trl.metrics import METRICS
from canon_trl.sampling.samplers import TransformersSampler, prompt_ids
from canon_trl.sampling.scoring import Scorer
from canon_trl.tasks import TASKS

TASK = TASKS["arithmetic"]
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [5, 6, 7]]
RESPONSES = [[3, 4, 5, 6], [7, 2], [8, 9, 10]]


@pytest.fixture(scope="module")
def qwen():
    return AutoModelForCausalLM.from_pretrained(TASK.model_path).eval()


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=21, n_positions=32, n_embd=8, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config).eval()


def log_prob(model, prompt, response, temperature):
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1)[range(len(response)), response]


def full_gradients(model, names, temperature):
    """Return the gradients of the log-probabilities by the parameters with these names, one row per response."""
    chosen = [parameter for name, parameter in model.named_parameters() if name in names]
    rows = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        found = torch.autograd.grad(log_prob(model, prompt, response, temperature).sum(), chosen)
        rows.append(torch.cat([each.flatten() for each in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["qwen", "gpt2"])
def test_a_large_sketch_has_the_inner_products_of_the_full_gradients(name, request):
    model = request.getfixturevalue(name)
    layers = {name: each for name, each in find_layers(model).items() if name != "lm_head"}  # tied to the embeddings
    with GradientSketch(model, layers, size=400) as sketch:
        found = score_responses(model, sketch, PROMPTS, RESPONSES, temperature=0.7, batch_tokens=16)
    names = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    full = full_gradients(model, names, 0.7)
    assert torch.allclose(found.scores @ found.scores.T, full @ full.T, rtol=1e-4)
    for row, response in enumerate(RESPONSES):
        expected = log_prob(model, PROMPTS[row], response, 0.7)
        assert torch.allclose(found.log_probs[row, : len(response)], expected, atol=1e-5)
        assert found.surprisals[row].item() == pytest.approx(-expected.sum().item(), rel=1e-5)
    assert found.mask.sum(dim=1).tolist() == [len(each) for each in RESPONSES]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_entropies_are_those_of_the_distribution(qwen):
    with GradientSketch(qwen, find_layers(qwen), size=2) as sketch:
        found = score_responses(qwen, sketch, PROMPTS, RESPONSES, temperature=1.5, batch_tokens=1000)
    logits = qwen(torch.tensor([PROMPTS[0] + RESPONSES[0]])).logits[0, 2:-1] / 1.5
    expected = torch.distributions.Categorical(logits=logits).entropy()
    assert torch.allclose(found.entropies[0], expected, atol=1e-5)
    assert found.entropies[1, 2:].tolist() == [0, 0]


def test_a_small_sketch_keeps_inner_products_on_average(gpt2):
    layers = find_layers(gpt2, ["attn"])
    full = full_gradients(gpt2, {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}, 1.0)
    found = []
    for seed in range(300):
        with GradientSketch(gpt2, layers, size=3, seed=seed) as sketch:
            assert sketch.width == len(layers) * 9
            scores = score_responses(gpt2, sketch, PROMPTS, RESPONSES, temperature=1.0, batch_tokens=100).scores
        found.append(scores @ scores.T)
    found = torch.stack(found)
    assert ((found.mean(0) - full @ full.T).abs() < 4 * found.std(0) / 300**0.5).all()


def test_a_projection_is_the_identity_on_average():
    drawn = [projection(5, 2, torch.Generator().manual_seed(seed)) for seed in range(4000)]
    assert torch.allclose(sum(each @ each.T for each in drawn) / 4000, torch.eye(5), atol=0.1)
    assert torch.equal(projection(3, 5, torch.Generator()), torch.eye(3))


def test_gains_are_those_of_full_gradients(qwen):
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    rows = list(TASK.dataset("train", 32))
    sample = TransformersSampler(qwen, tokenizer, num_samples=8, max_new_tokens=40)
    responses = sample([row["prompt"] for row in rows], 0)
    rewards = torch.tensor(Scorer([TASK.reward], tokenizer)(rows, responses))
    prompts = [ids for ids in prompt_ids(tokenizer, [row["prompt"] for row in rows]) for _ in range(8)]
    tails = [response.ids for given in responses for response in given]
    with GradientSketch(qwen, find_layers(qwen), size=24) as sketch:
        found = score_responses(qwen, sketch, prompts, tails, temperature=1.0, batch_tokens=4096)
    entropy = METRICS["entropy"](found.entropies, found.mask).view(32, 8)
    advantages = {
        "dr_grpo": dr_grpo_advantage(rewards),
        "inter": canon_advantage(rewards, entropy, mu=1.0),
        "intra": canon_advantage(rewards, entropy, mu=0.0),
        "a_grae": a_grae_advantage(rewards),
    }
    given = {
        "rewards": rewards,
        "lengths": found.mask.sum(dim=1).view(32, 8),
        "surprisals": found.surprisals.view(32, 8),
        "advantages": advantages,
        "prompts_per_step": 8,
    }
    full = []
    for pair in zip(prompts, tails, strict=True):
        gradients = torch.autograd.grad(log_prob(qwen, *pair, 1.0).sum(), list(qwen.parameters()))
        full.append(torch.cat([each.flatten() for each in gradients]))
    products = sum(part.double() @ part.double().T for part in torch.stack(full).split(50_000, dim=1))
    values, vectors = torch.linalg.eigh(products)
    root = vectors * values.clamp(min=0).sqrt()  # as many dimensions as responses, with the same inner products
    exact = describe_estimators(root.view(32, 8, -1), **given)[1]
    sketched = describe_estimators(found.scores.view(32, 8, -1), **given)[1]
    for label in advantages:
        assert sketched[label].gain.mean == pytest.approx(exact[label].gain.mean, abs=0.05), label
        assert sketched[label].cosine.mean == pytest.approx(exact[label].cosine.mean, abs=0.05), label
        assert sketched[label].snr.mean == pytest.approx(exact[label].snr.mean, rel=0.25), label


def test_batches_hold_at_most_so_many_tokens():
    prompts, responses = [[0] * 2] * 5, [[0] * size for size in (4, 1, 9, 1, 4)]
    assert list(batches(prompts, responses, 12)) == [[1, 3], [0, 4], [2]]
    assert list(batches(prompts, responses, 1)) == [[1], [3], [0], [4], [2]]


def test_layers_are_chosen_by_name_by_block_and_by_adapter(qwen):
    every = find_layers(qwen)
    assert len(every) == 2 * 7 + 1 and list(find_layers(qwen, "all")) == list(every)
    assert len(find_layers(qwen, ["q_proj", "v_proj"])) == 4
    assert list(find_layers(qwen, 1)) == [name for name in every if ".1." in name]
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(TASK.model_path), LoraConfig(r=2, target_modules=["q_proj"])
    )
    layers = find_layers(adapted)
    assert len(layers) == 4 and all("lora_" in name for name in layers)
    with GradientSketch(adapted, layers, size=4) as sketch:
        scores = score_responses(
            adapted.get_base_model().eval(), sketch, PROMPTS, RESPONSES, temperature=1.0, batch_tokens=99
        ).scores
    assert scores.shape == (3, 2 * 2 * 2 * 4) and (scores != 0).any()
    with pytest.raises(ValueError, match="layers=\\['experts'\\] matches none of the linear layers, such as"):
        find_layers(qwen, ["experts"])
    with pytest.raises(ValueError, match="layers=0 must be at least 1"):
        find_layers(qwen, 0)


class Routed(nn.Module):
    """A layer that gets single tokens, as an expert does."""

    def __init__(self, count):
        super().__init__()
        self.count = count
        self.expert = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, values):
        return self.expert(values.flatten(0, 1)[: self.count])


def test_a_layer_that_gets_the_tokens_of_all_rows_at_once():
    model, values = Routed(10), torch.rand(2, 5, 4)
    with GradientSketch(model, {"expert": model.expert}, size=9) as sketch:
        sketch.expect(2, 5)
        model(values).sum().backward()
        found = sketch.take().view(2, 4, 5)
    inputs = torch.cat([values, torch.ones(2, 5, 1)], dim=-1).sum(dim=1)
    assert torch.allclose(found, inputs.unsqueeze(1).expand(-1, 4, -1))


def test_layers_that_cannot_be_sketched():
    with pytest.raises(ValueError, match=r"Embedding has no linear layer.*its layers are \['Embedding'\]"):
        find_layers(nn.Embedding(3, 3))
    for count in (2, 3, 4):  # also multiples of the number of rows
        model = Routed(count)
        with GradientSketch(model, {"expert": model.expert}, size=2) as sketch:
            sketch.expect(2, 5)
            with pytest.raises(ValueError, match=rf"'expert' cannot be sketched: .* of shape \({count}, 4\)"):
                model(torch.rand(2, 5, 4))
    with GradientSketch(model, {"unused": model.unused}, size=2) as sketch:
        with pytest.raises(ValueError, match="the gradient did not reach 1 of 1 layers, such as 'unused'"):
            sketch.take()

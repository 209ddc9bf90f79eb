"""A scoring pass that reads each prompt once: the values of TRL's pass, and the models that keep TRL's."""

from functools import partial

import pytest
import torch
from observe import cache_of, keep_outputs, keep_rollouts
from peft import LoraConfig
from test_metrics import reading_estimator
from toy import (
    ONE_ROLLOUT,
    TASK,
    assert_same_but_for_rounding,
    assert_same_parameters,
    base_model,
    config,
    logged,
    make_trainer,
    parameters,
    prompts,
    rollout_with_tool,
    save_mixture_of_experts,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

from canon_trl import CANONTrainer
from canon_trl.hook import scoring, shared_prefix
from canon_trl.hook.scoring_pass import score_responses
from canon_trl.hook.shared_prefix import decoder_obstacles

PROMPTS, COMPLETIONS = [3, 3, 9, 9, 1, 1, 3], [0, 12, 5, 1, 7, 0, 12]


def padded_rows(prompts, completions, padding):
    """Random tokens with padding on the left of prompts and on the right of completions, their mask, and the width.

    Two prompts of the same length in a row are equal.
    """
    torch.manual_seed(0)
    before, after = max(prompts) + padding, max(completions) + padding
    position, lengths = torch.arange(before + after), torch.tensor([prompts, completions]).unsqueeze(-1)
    mask = (position >= before - lengths[0]) & (position < before + lengths[1])
    ids = torch.randint(5, 20, mask.shape).masked_fill(~mask, 0)
    for row in range(1, len(prompts)):
        if prompts[row] == prompts[row - 1]:
            ids[row, :before] = ids[row - 1, :before]
    return ids, mask.long(), after


def sliding_window():
    """A model whose layers keep the last four tokens only."""
    sizes = {"vocab_size": 21, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    return MistralForCausalLM(MistralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, sliding_window=4))


def mixture_of_experts(folder):
    return AutoModelForCausalLM.from_pretrained(save_mixture_of_experts(folder), output_router_logits=False)


@pytest.mark.parametrize("kind", ["plain", "sliding window", "mixture of experts"])
@pytest.mark.parametrize("batch_size", [1, 3, None])
@pytest.mark.parametrize("completions", [COMPLETIONS, [0] * 7], ids=["some", "all empty"])
def test_the_values_are_those_of_trls_pass(tmp_path, kind, batch_size, completions):
    make = {"plain": base_model, "sliding window": sliding_window}.get(kind, partial(mixture_of_experts, tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    trainer = CANONTrainer(make(), TASK.reward, config(temperature=0.7), prompts(8), processing_class=tokenizer)
    assert decoder_obstacles(trainer, trainer.model) == []
    model, score, sizes = trainer.model, trainer._get_per_token_logps_and_entropies, []
    model.register_forward_pre_hook(
        lambda module, args, inputs: sizes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    ids, mask, width = padded_rows(PROMPTS, completions, padding=3)
    with torch.no_grad():
        got = score_responses(score, model, ids, mask, width, batch_size, compute_entropy=True)
        passes = sizes.copy()
        want = score(model, ids, mask, width, compute_entropy=True)
    written = mask[:, -width:].bool()
    for values, wanted in zip(got[:2], want[:2], strict=True):
        assert values.shape == wanted.shape
        torch.testing.assert_close(values[written], wanted[written], atol=1e-5, rtol=0)
    # The four prompts without their last token, then that token with the responses.
    assert passes[0] == (4, 11)
    if not any(completions):
        expected = {1: [(1, 2)] * 7, 3: [(3, 2), (3, 2), (1, 2)], None: [(7, 2)]}
    else:
        expected = {
            1: [(1, 1 + max(own, 1)) for own in sorted(completions, reverse=True)],
            3: [(3, 13), (1, 6), (3, 2)],
            None: [(3, 13), (1, 6), (3, 2)],
        }
    assert passes[1:] == expected[batch_size]


def test_prompts_of_one_token(tmp_path):
    """There is nothing to share."""
    trainer = make_trainer(tmp_path)
    ids, mask, width = padded_rows([1] * 7, COMPLETIONS, padding=0)
    options = {"batch_size": 7, "compute_entropy": True}
    arguments = (trainer._get_per_token_logps_and_entropies, trainer.model, ids, mask, width)
    with torch.no_grad():
        for got, want in zip(
            score_responses(*arguments, **options), arguments[0](*arguments[1:], **options), strict=True
        ):
            assert got is want is None or torch.equal(got, want)


def both_ways(tmp_path, monkeypatch, trainer_options, **options):
    """The trainer, its rollouts and its outputs with this pass, and with TRL's."""
    trained = []
    for name in ("ours", "trl"):
        torch.manual_seed(0)  # adapters start at random
        given = {"advantage_estimator": reading_estimator, **trainer_options}
        trainer = make_trainer(tmp_path / name, trainer_options=given, entropy_source="forward", **options)
        with monkeypatch.context() as patch:
            patch.setattr(scoring, "decoder_obstacles", lambda trainer, model, found=[name] * (name == "trl"): found)
            rollouts, outputs = keep_rollouts(trainer), keep_outputs(trainer)
            trainer.train()
        trained.append((trainer, rollouts, outputs))
    return trained


METRICS = ("entropy", "surprisal", "length")


@pytest.mark.parametrize(
    ("options", "trainer_options"),
    [
        ({"mask_truncated_completions": True, "pad_to_multiple_of": 8}, {}),
        ({"dynamic_sampling": True}, {}),
        ({"gradient_accumulation_steps": 2, "gradient_checkpointing": True}, {}),
        ({"beta": 0.1}, {"peft_config": LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)}),
    ],
    ids=["truncated", "dynamic sampling", "accumulation", "reference"],
)
def test_only_metrics_differ_and_by_rounding(tmp_path, monkeypatch, options, trainer_options):
    """The loss reads TRL's values, also those of the reference."""
    ours, trls = both_ways(tmp_path, monkeypatch, trainer_options, temperature=1.3, **options)
    for rollout, want in zip(ours[1], trls[1], strict=True):
        assert not all(torch.equal(rollout.metrics[name], want.metrics[name]) for name in METRICS)
        for name in METRICS:
            torch.testing.assert_close(rollout.metrics[name], want.metrics[name], atol=2e-5, rtol=0)
    for output, want in zip(ours[2], trls[2], strict=True):
        assert output.keys() == want.keys() and "old_per_token_logps" not in output
        assert all(torch.equal(output[name], value) for name, value in want.items() if torch.is_tensor(value))
    assert_same_parameters(parameters(ours[0]), parameters(trls[0]))
    assert_same_but_for_rounding(logged(ours[0]), logged(trls[0]))


def without_log_probs(prompts, trainer):
    return rollout_with_tool(prompts, trainer) | {"logprobs": None}


def test_tokens_of_tools(tmp_path, monkeypatch):
    ours, trls = both_ways(tmp_path, monkeypatch, {"rollout_func": without_log_probs}, **ONE_ROLLOUT)
    for name in METRICS:
        torch.testing.assert_close(ours[1][0].metrics[name], trls[1][0].metrics[name], atol=2e-5, rtol=0)


def continues_prompts(trainer):
    """Train, and tell whether any forward pass without sampling has continued a cache."""
    continued = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, inputs: continued.append(cache_of(inputs)), with_kwargs=True
    )
    trainer.train()
    return any(cache is not None for cache in continued)


def test_a_model_that_does_not_fit_keeps_trls_pass(tmp_path, monkeypatch):
    options = {"entropy_source": "forward", "trainer_options": {"rollout_func": without_log_probs}, **ONE_ROLLOUT}
    assert continues_prompts(make_trainer(tmp_path, **options))
    assert not continues_prompts(make_trainer(tmp_path, model=save_mixture_of_experts(tmp_path / "moe"), **options))
    monkeypatch.setattr(shared_prefix, "cache_can_drop_rows", lambda model: False)
    assert not continues_prompts(make_trainer(tmp_path, **options))

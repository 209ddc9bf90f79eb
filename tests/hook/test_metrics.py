"""Metrics of responses: recorded while generating or scored by a pass, of tokens that the model wrote."""

import math

import pytest
import torch
from observe import count_forwards, keep_outputs, keep_rollouts, scored_entropy
from toy import (
    ONE_ROLLOUT,
    TASK,
    base_model,
    logged,
    make_trainer,
    prompts,
    rollout_with_tool,
)

from canon_trl import CANONTrainer, requires_metrics
from canon_trl.advantages import canon_advantage, dr_grpo_advantage
from canon_trl.metrics import length


@requires_metrics("entropy", "surprisal", "length")
def reading_estimator(rollout):
    return dr_grpo_advantage(rollout.rewards)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("options", "passes"),
    [
        pytest.param({"entropy_source": "generation"}, 0, id="recorded while generating"),
        pytest.param({"entropy_source": "forward"}, 1, id="a pass of its own"),
        pytest.param({"num_iterations": 2}, 1, id="TRL's own pass"),
    ],
)
def test_entropy_and_surprisal_agree_with_a_scoring_pass(tmp_path, options, passes, temperature):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"advantage_estimator": reading_estimator},
        temperature=temperature,
        top_k=5,
        **ONE_ROLLOUT,
        **options,
    )
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    calls = count_forwards(trainer)
    trainer.train()
    entropy, surprisal = scored_entropy(trainer, outputs[0])
    metrics = rollouts[0].metrics
    torch.testing.assert_close(metrics["entropy"].flatten(), entropy, atol=2e-5, rtol=0)
    torch.testing.assert_close(metrics["surprisal"].flatten(), surprisal, atol=2e-5, rtol=0)
    assert torch.equal(metrics["length"].flatten(), outputs[0]["completion_mask"].sum(1).float())
    assert calls == {"without_grad": passes, "with_grad": 1}


def test_a_token_that_the_model_rules_out_has_no_part_in_the_entropy(tmp_path):
    """Some models set logits to minus infinity, and 0 times minus infinity is no number."""
    trainer = make_trainer(tmp_path, entropy_source="generation", **ONE_ROLLOUT)

    def rule_out(module, args, output):
        if not torch.is_grad_enabled():
            output.logits[..., ruled_out] = -torch.inf
        return output

    ruled_out = trainer.processing_class.convert_tokens_to_ids("7")
    trainer.model.register_forward_hook(rule_out)
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    assert not (outputs[0]["completion_ids"] == ruled_out).any()
    ids, attention = [
        torch.cat([outputs[0][f"{part}_{kind}"] for part in ("prompt", "completion")], dim=1)
        for kind in ("ids", "mask")
    ]
    mask = outputs[0]["completion_mask"]
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits[:, -mask.shape[1] - 1 : -1]
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    want = (entropy * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(rollouts[0].metrics["entropy"].flatten(), want, atol=2e-5, rtol=0)


def test_no_metric_no_cost(tmp_path):
    trainer = make_trainer(tmp_path, advantage_estimator="dr_grpo", **ONE_ROLLOUT)
    rollouts = keep_rollouts(trainer)
    calls = count_forwards(trainer)
    trainer.train()
    assert rollouts[0].metrics == {}
    assert calls == {"without_grad": 0, "with_grad": 1}


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2}, {"entropy_source": "forward"}], ids=str)
def test_masked_truncated_completions_keep_their_length_and_entropy(tmp_path, options):
    """Masking them from the loss changes neither the metrics nor the advantages of anybody."""
    kept = {}
    for masked in (False, True):
        trainer = make_trainer(
            tmp_path,
            trainer_options={"advantage_estimator": reading_estimator},
            mask_truncated_completions=masked,
            max_completion_length=8,
            **ONE_ROLLOUT,
            **options,
        )
        rollouts = keep_rollouts(trainer)
        outputs = keep_outputs(trainer)
        trainer.train()
        kept[masked] = rollouts[0], outputs[0]
    (plain, plain_output), (masked, masked_output) = kept[False], kept[True]
    truncated = masked_output["completion_mask"].sum(1) == 0
    assert 0 < truncated.sum() < len(truncated), "the case needs both kinds"
    assert torch.equal(masked.lengths, plain.lengths)
    assert (masked.lengths.flatten()[truncated] == 8).all()
    for name in ("entropy", "surprisal", "length"):
        torch.testing.assert_close(masked.metrics[name], plain.metrics[name], atol=2e-5, rtol=0)
    assert torch.equal(masked_output["advantages"], plain_output["advantages"])
    if "old_per_token_logps" in masked_output:  # TRL's own tensor stays as TRL makes it
        assert (masked_output["old_per_token_logps"][truncated] == 0).all()
        assert math.isfinite(logged(trainer)[0]["loss"])


def digits(completions, **kwargs):
    """A metric of one's own: how many digits the response has."""
    return [sum(character.isdigit() for character in text) for text in completions]


def longest_doubt(entropies, mask):
    return entropies.masked_fill(~mask, 0.0).amax(dim=1)


@pytest.mark.parametrize("metric", [digits, longest_doubt])
@pytest.mark.parametrize("by_path", [False, True])
def test_own_metric(tmp_path, metric, by_path):
    trainer_options, options = {"canon_metric": metric}, {}
    if by_path:
        trainer_options, options = {}, {"canon_metric": f"{__name__}:{metric.__name__}"}
    trainer = make_trainer(tmp_path, trainer_options=trainer_options, max_steps=1, **options)
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    name = options.get("canon_metric", metric.__name__)
    if metric is digits:
        texts = trainer.processing_class.batch_decode(outputs[0]["completion_ids"], skip_special_tokens=True)
        assert rollouts[0].metrics[name].flatten().tolist() == digits(texts)
    want = canon_advantage(rollouts[0].rewards, rollouts[0].metrics[name])
    assert torch.equal(outputs[0]["advantages"], want.flatten())


def without_log_probs(prompts, trainer):
    return {name: part for name, part in rollout_with_tool(prompts, trainer).items() if name != "logprobs"} | {
        "logprobs": None
    }


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_p": 0.2},
        {"min_p": 0.9},
        {"repetition_penalty": 1.5},
        {"generation_kwargs": {"num_beams": 1}},
    ],
    ids=str,
)
def test_log_probabilities_mean_one_thing_whoever_samples(tmp_path, options):
    """A sampler that gives its own ones, as vLLM does, gives others than the policy's where it cuts tokens off."""
    trainer = make_trainer(
        tmp_path,
        trainer_options={"advantage_estimator": reading_estimator, "rollout_func": rollout_with_tool},
        **options,
        **ONE_ROLLOUT,
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    again = make_trainer(
        tmp_path,
        trainer_options={"advantage_estimator": reading_estimator, "rollout_func": without_log_probs},
        **ONE_ROLLOUT,
    )
    scored = keep_rollouts(again)
    again.train()
    assert torch.equal(rollouts[0].metrics["surprisal"], scored[0].metrics["surprisal"])
    assert 0 < scored[0].metrics["surprisal"].min() and scored[0].metrics["surprisal"].frac().all()


def test_surprisal_is_the_policys_where_tokens_are_cut_off(tmp_path):
    """Of the likeliest token of each step: the sampler is certain of it, the policy is not."""
    trainer = make_trainer(
        tmp_path, trainer_options={"advantage_estimator": reading_estimator}, top_k=1, **ONE_ROLLOUT
    )
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    entropy, surprisal = scored_entropy(trainer, outputs[0])
    assert surprisal.min() > 0.01
    torch.testing.assert_close(rollouts[0].metrics["surprisal"].flatten(), surprisal, atol=2e-5, rtol=0)
    torch.testing.assert_close(rollouts[0].metrics["entropy"].flatten(), entropy, atol=2e-5, rtol=0)


def test_the_models_own_settings_do_not_reach_the_sampler(tmp_path):
    """Those of its generation_config.json, of which generate takes what TRL leaves open."""
    texts = []
    for own in ({}, {"min_p": 0.99, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "repetition_penalty": 9.0}):
        model = base_model()
        for name, value in own.items():
            setattr(model.generation_config, name, value)
        trainer = CANONTrainer(model, TASK.reward, make_trainer(tmp_path, **ONE_ROLLOUT).args, prompts())
        outputs = keep_outputs(trainer)
        torch.manual_seed(5)
        trainer.train()
        texts.append(outputs[0]["completion_ids"].tolist())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("masked", [False, True])
def test_tool_tokens_count_in_no_metric(tmp_path, masked):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"advantage_estimator": reading_estimator, "rollout_func": rollout_with_tool},
        mask_truncated_completions=masked,  # none of them ends with an end-of-sequence token
        **ONE_ROLLOUT,
    )
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    lengths = [1 + row % 3 + 1 for row in range(8)]  # the ones, and the digit after '#'
    assert rollouts[0].lengths.flatten().tolist() == lengths
    assert rollouts[0].metrics["length"].flatten().tolist() == lengths
    assert rollouts[0].metrics["surprisal"].flatten().tolist() == [float(row + 1) for row in range(8)]
    output = outputs[0]
    written = torch.arange(output["completion_ids"].shape[1]) < torch.tensor(lengths).unsqueeze(1) + 1
    model_tokens = written.clone()
    for row, count in enumerate(lengths):
        model_tokens[row, count - 1] = False
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    attention = torch.cat([output["prompt_mask"], written.long()], dim=1)
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits[:, -written.shape[1] - 1 : -1]
    token_entropy = torch.distributions.Categorical(logits=logits).entropy()
    want = (token_entropy * model_tokens).sum(1) / model_tokens.sum(1)
    torch.testing.assert_close(rollouts[0].metrics["entropy"].flatten(), want, atol=2e-5, rtol=0)


def test_reference_model_pass_is_not_taken_for_the_policy(tmp_path):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"advantage_estimator": reading_estimator},
        beta=0.1,
        num_iterations=2,
        **ONE_ROLLOUT,
    )
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    with torch.no_grad():
        for value in trainer.ref_model.parameters():
            value.mul_(0.5)
    trainer.train()
    entropy, _ = scored_entropy(trainer, outputs[0])
    torch.testing.assert_close(rollouts[0].metrics["entropy"].flatten(), entropy, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["random", "accuracy"])
def test_a_metric_of_ones_own_may_have_any_name(tmp_path, name):
    """Also that of the random metric, and that of what is checked beside the metrics."""

    def metric(completion_ids):
        return [float(len(ids)) for ids in completion_ids]

    metric.__name__ = name
    trainer = make_trainer(
        tmp_path, trainer_options={"canon_metric": metric}, canon_mu_schedule="inter_to_intra", max_steps=1
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    assert torch.equal(rollouts[0].metrics[name], rollouts[0].lengths.float())


def test_alpha_tilts_the_longer_half_for_length_by_any_name(tmp_path):
    for options, trainer_options in [
        ({"canon_metric": "length"}, {}),
        ({"canon_metric": "canon_trl.metrics:length"}, {}),
        ({}, {"canon_metric": length}),
    ]:
        trainer = make_trainer(
            tmp_path, trainer_options=trainer_options, canon_alpha=0.5, max_steps=1, learning_rate=0.0, **options
        )
        rollouts = keep_rollouts(trainer)
        outputs = keep_outputs(trainer)
        trainer.train()
        want = canon_advantage(rollouts[0].rewards, rollouts[0].lengths, alpha=0.5, alpha_group="higher")
        assert torch.equal(outputs[0]["advantages"], want.flatten())


@pytest.mark.parametrize(
    "options",
    [
        {"generation_kwargs": {"guidance_scale": 1.5}},
        {"generation_kwargs": {"num_beams": 2}},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_entropy_is_scored_where_it_cannot_be_recorded(tmp_path, options):
    trainer = make_trainer(tmp_path, **options, **ONE_ROLLOUT)
    assert not trainer._records_generation


def test_one_beam_is_recorded(tmp_path):
    trainer = make_trainer(tmp_path, generation_kwargs={"num_beams": 1}, **ONE_ROLLOUT)
    calls = count_forwards(trainer)
    trainer.train()
    assert calls == {"without_grad": 0, "with_grad": 1}


def test_what_was_recorded_must_be_what_was_written(tmp_path):
    """A rewritten completion has other tokens than the logits were sampled for."""
    trainer = make_trainer(tmp_path, **ONE_ROLLOUT)
    generate = trainer._generate_single_turn

    def rewritten(*args):
        completion_ids, log_probs = generate(*args)
        return [ids[::-1] for ids in completion_ids], log_probs

    trainer._generate_single_turn = rewritten
    with pytest.raises(RuntimeError, match="cannot be attributed; set entropy_source='forward'"):
        trainer.train()

"""Metrics of responses: recorded while generating or scored by a pass, over the tokens that the model wrote."""

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


SOURCES = [
    pytest.param({"entropy_source": "generation"}, 0, id="recorded while sampling"),
    pytest.param({"entropy_source": "generation", "rollout_sampler": "generate"}, 0, id="recorded while generating"),
    pytest.param({"entropy_source": "forward"}, 1, id="a separate pass"),
    pytest.param({"num_iterations": 2}, 1, id="TRL's own pass"),
]


def rollout_of(trainer):
    """Train, and return the first rollout, what TRL makes of it, and the passes that it costs."""
    rollouts, outputs, calls = keep_rollouts(trainer), keep_outputs(trainer), count_forwards(trainer)
    trainer.train()
    return rollouts[0], outputs[0], calls


@pytest.fixture(scope="module")
def one_rollout(tmp_path_factory):
    """A trainer and its one rollout of sampled responses, trained once for each set of options."""
    made = {}

    def train(**options):
        key = str(sorted(options.items()))
        if key not in made:
            options = {"top_k": 5, "max_completion_length": 8, "mask_truncated_completions": False} | options
            given = {"advantage_estimator": reading_estimator}
            trainer = make_trainer(tmp_path_factory.mktemp("run"), trainer_options=given, **ONE_ROLLOUT, **options)
            made[key] = trainer, *rollout_of(trainer)
        return made[key]

    return train


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("options", "passes"), SOURCES)
def test_entropy_and_surprisal_agree_with_a_scoring_pass(one_rollout, options, passes, temperature):
    trainer, rollout, output, calls = one_rollout(temperature=temperature, **options)
    entropy, surprisal = scored_entropy(trainer, output)
    torch.testing.assert_close(rollout.metrics["entropy"].flatten(), entropy, atol=2e-5, rtol=0)
    torch.testing.assert_close(rollout.metrics["surprisal"].flatten(), surprisal, atol=2e-5, rtol=0)
    assert torch.equal(rollout.metrics["length"].flatten(), output["completion_mask"].sum(1).float())
    assert calls == {"without_grad": passes, "with_grad": 1}


@pytest.mark.parametrize(("options", "passes"), SOURCES)
def test_masked_truncated_completions_keep_their_length_and_entropy(one_rollout, options, passes):
    """Masking them from the loss changes neither the metrics nor the advantages of any response."""
    _, plain, plain_output, _ = one_rollout(temperature=1.0, **options)
    trainer, masked, masked_output, _ = one_rollout(temperature=1.0, mask_truncated_completions=True, **options)
    truncated = masked_output["completion_mask"].sum(1) == 0
    assert 0 < truncated.sum() < len(truncated), "the case needs both kinds"
    assert torch.equal(masked.lengths, plain.lengths)
    assert (masked.lengths.flatten()[truncated] == 8).all()
    for name in ("entropy", "surprisal", "length"):
        torch.testing.assert_close(masked.metrics[name], plain.metrics[name], atol=2e-5, rtol=0)
    assert torch.equal(masked_output["advantages"], plain_output["advantages"])
    if "old_per_token_logps" in masked_output:  # TRL's own tensor is unchanged
        assert (masked_output["old_per_token_logps"][truncated] == 0).all()
        assert math.isfinite(logged(trainer)[0]["loss"])


@pytest.mark.parametrize("sampler", ["shared_prefix", "generate"])
def test_a_token_with_probability_0_adds_nothing_to_the_entropy(tmp_path, sampler):
    """Some models set logits to minus infinity, and 0 times minus infinity is NaN."""
    trainer = make_trainer(tmp_path, entropy_source="generation", rollout_sampler=sampler, **ONE_ROLLOUT)

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


def test_no_metric_costs_nothing(tmp_path):
    trainer = make_trainer(tmp_path, advantage_estimator="dr_grpo", **ONE_ROLLOUT)
    rollouts = keep_rollouts(trainer)
    calls = count_forwards(trainer)
    trainer.train()
    assert rollouts[0].metrics == {}
    assert calls == {"without_grad": 0, "with_grad": 1}


def digits(completions, **kwargs):
    """A user's metric: how many digits the response has."""
    return [sum(character.isdigit() for character in text) for text in completions]


def longest_doubt(entropies, mask):
    return entropies.masked_fill(~mask, 0.0).amax(dim=1)


@pytest.mark.parametrize("metric", [digits, longest_doubt])
@pytest.mark.parametrize("by_path", [False, True])
def test_a_users_own_metric(tmp_path, metric, by_path):
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


@pytest.fixture(scope="module")
def scored_surprisal(tmp_path_factory):
    """The surprisal of responses for which the sampler gives no log-probabilities."""
    options = {"advantage_estimator": reading_estimator, "rollout_func": without_log_probs}
    trainer = make_trainer(tmp_path_factory.mktemp("scored"), trainer_options=options, **ONE_ROLLOUT)
    surprisal = rollout_of(trainer)[0].metrics["surprisal"]
    assert 0 < surprisal.min() and surprisal.frac().all()
    return surprisal


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
def test_log_probabilities_are_the_policys_whoever_samples(tmp_path, scored_surprisal, options):
    """Those that a sampler reports, as vLLM does, differ from the policy's where it cuts tokens off."""
    trainer = make_trainer(
        tmp_path,
        trainer_options={"advantage_estimator": reading_estimator, "rollout_func": rollout_with_tool},
        **options,
        **ONE_ROLLOUT,
    )
    rollout, *_ = rollout_of(trainer)
    assert torch.equal(rollout.metrics["surprisal"], scored_surprisal)


def test_surprisal_is_the_policys_where_tokens_are_cut_off(one_rollout):
    """The sampler is certain of the likeliest token of each step; the policy is not."""
    trainer, rollout, output, _ = one_rollout(top_k=1)
    entropy, surprisal = scored_entropy(trainer, output)
    assert surprisal.min() > 0.01
    torch.testing.assert_close(rollout.metrics["surprisal"].flatten(), surprisal, atol=2e-5, rtol=0)
    torch.testing.assert_close(rollout.metrics["entropy"].flatten(), entropy, atol=2e-5, rtol=0)


def test_the_models_own_settings_do_not_reach_the_sampler(tmp_path):
    """`generate` would take from its generation_config.json what TRL leaves open."""
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
        mask_truncated_completions=masked,  # no response ends with an end-of-sequence token
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


def test_the_reference_models_pass_is_not_mistaken_for_the_policys(tmp_path):
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
def test_a_users_own_metric_may_have_any_name(tmp_path, name):
    """Even the name of the random metric, or of the accuracy that is checked together with the metrics."""

    def metric(completion_ids):
        return [float(len(ids)) for ids in completion_ids]

    metric.__name__ = name
    trainer = make_trainer(
        tmp_path, trainer_options={"canon_metric": metric}, canon_mu_schedule="inter_to_intra", max_steps=1
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    assert torch.equal(rollouts[0].metrics[name], rollouts[0].lengths.float())


def test_alpha_weighs_the_longer_half_under_any_name_of_length(tmp_path):
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
    ("options", "passes"),
    [
        ({"generation_kwargs": {"num_beams": 1}}, 0),
        ({"generation_kwargs": {"num_beams": 2}}, 1),
        ({"generation_kwargs": {"guidance_scale": 1.5}}, 1),
        ({"cache_implementation": "static"}, 1),
    ],
    ids=str,
)
def test_entropy_is_scored_where_it_cannot_be_recorded(tmp_path, options, passes):
    trainer = make_trainer(tmp_path, **options, **ONE_ROLLOUT)
    assert rollout_of(trainer)[2] == {"without_grad": passes, "with_grad": 1}


def test_recorded_tokens_must_match_the_completions(tmp_path):
    """A rewritten completion has other tokens than the logits were sampled for."""
    trainer = make_trainer(tmp_path, **ONE_ROLLOUT)
    generate = trainer.model.generate

    def rewritten(input_ids, **kwargs):
        written = generate(input_ids=input_ids, **kwargs)
        first = input_ids.shape[1]
        written[:, first] = written[:, first].roll(1)
        return written

    trainer.model.generate = rewritten
    with pytest.raises(RuntimeError, match="cannot be attributed; set entropy_source='forward'"):
        trainer.train()


def share_of_signs(completions, **kwargs):
    return [text.count("=") / max(len(text), 1) for text in completions]


@requires_metrics("length", share_of_signs, "random")
def own_estimator(rewards, metrics):
    return dr_grpo_advantage(rewards) * (1 + metrics["share_of_signs"])


def test_the_metrics_of_a_users_estimator_are_logged(tmp_path):
    given = {"advantage_estimator": own_estimator, "eval_dataset": prompts(8)}
    trainer = make_trainer(tmp_path, trainer_options=given, max_steps=1, eval_strategy="steps", eval_steps=1)
    rollouts = keep_rollouts(trainer)
    trainer.train()
    entry = logged(trainer)[0]
    assert {name for name in entry if name.startswith("metric/")} == {
        "metric/length/mean",
        "metric/share_of_signs/mean",
    }
    for name in ("length", "share_of_signs"):
        assert entry[f"metric/{name}/mean"] == pytest.approx(rollouts[0].metrics[name].mean().item(), rel=1e-6)
    assert any("eval_metric/share_of_signs/mean" in evaluated for evaluated in trainer.state.log_history)

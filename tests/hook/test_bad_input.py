"""Errors come before any model is loaded and name the field, the value and what is allowed."""

import logging
from functools import partial

import pytest
from datasets import Dataset
from toy import NO_MODEL, OPTIONS, TASK, build, config, length_reward, make_trainer, prompts
from trl import GRPOConfig

from canon_trl import AStarPOConfig, CANONConfig, CANONTrainer, PluggableGRPOTrainer, requires_metrics
from canon_trl.advantages import ESTIMATORS
from canon_trl.config.canon import PRESETS
from canon_trl.metrics import METRICS
from canon_trl.policy_losses import POLICY_LOSSES


def with_bonus(rollout, *, bonus):
    return rollout.rewards * bonus


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"advantage_estimator": "gropo"},
            r"advantage_estimator='gropo' is unknown \(did you mean 'grpo'\?\); choose one of \['a_grae', 'canon'",
        ),
        ({"advantage_estimator": "no.such:f"}, "advantage_estimator='no.such:f' cannot be imported"),
        ({"advantage_estimator": "math:pi"}, "advantage_estimator='math:pi' is a float, not a function"),
        (
            {"canon_metric": "entropie"},
            r"canon_metric='entropie' is unknown \(did you mean 'entropy'\?\); choose one of \['entropy', 'length'",
        ),
        ({"canon_metric": "math:no"}, "canon_metric='math:no' cannot be imported"),
        ({"canon_mu_schedule": "linear"}, r"canon_mu_schedule='linear' must be one of \['constant', 'inter_to_intra'"),
        ({"canon_mu": 1.1}, r"canon_mu=1.1 must lie in \[0, 1\]"),
        ({"canon_mu": float("nan")}, "canon_mu=nan must lie"),
        ({"canon_alpha": 0.0}, r"canon_alpha=0.0 must lie in \(0, 1e6\]"),
        ({"canon_alpha": float("inf")}, r"canon_alpha=inf must lie in \(0, 1e6\]"),
        ({"canon_alpha_group": "long"}, "canon_alpha_group='long' must be 'higher', 'lower' or None"),
        ({"entropy_source": "logits"}, "entropy_source='logits' must be 'auto', 'generation' or 'forward'"),
        ({"canon_cosine_warmup_ratio": 1.0, "canon_mu_schedule": "cosine_inter_to_intra"}, r"must lie in \[0, 1\)"),
        ({"canon_cosine_cycles": 0, "canon_mu_schedule": "cosine_inter_to_intra"}, "canon_cosine_cycles=0"),
        (
            {"canon_cosine_low": 0.7, "canon_mu_schedule": "cosine_intra_to_inter"},
            "canon_cosine_low=0.7 must be at most canon_cosine_high=0.6",
        ),
        ({"canon_cosine_low": 0.1}, "canon_cosine_low=0.1 would be ignored by canon_mu_schedule='constant'"),
        ({"canon_mu": 0.0, "canon_alpha": 0.9}, "canon_alpha=0.9 would be ignored: canon_mu=0.0"),
        (
            {"canon_mu_schedule": "cosine_inter_to_intra", "canon_cosine_cycles": 9},
            "cycles=9 must be at most 2, the steps of total_steps=3 after warmup_steps=1",
        ),
        (
            {"advantage_estimator": f"{__name__}:with_bonus"},
            r"advantage_estimator '.*:with_bonus': needs a value for \['bonus'\]",
        ),
        ({"canon_mu": 0.3, "canon_mu_schedule": "inter_to_intra"}, "canon_mu=0.3 is ignored by canon_mu_schedule"),
        ({"advantage_estimator": "grpo", "canon_alpha": 0.9}, "canon_alpha=0.9 would be ignored: options of CANON"),
        (
            {"advantage_estimator": "grpo", "advantage_estimator_kwargs": {"epsilon": 1}},
            r"advantage_estimator 'grpo': takes no option 'epsilon' \(did you mean 'eps'\?\); it takes \['eps'\]",
        ),
        ({"advantage_estimator_kwargs": {"mu": 1}}, "must be empty for 'canon'"),
        (
            {"advantage_estimator": {"pass_at_k": {"k": 4}}},
            r"advantage_estimator='pass_at_k' with \{'k': 4\} needs .* at least 5 responses, but num_generations=4",
        ),
        (
            {"scale_rewards": "batch", "advantage_estimator": "a_grae"},
            "scale_rewards='batch' would be ignored: .*; advantage_estimator='grpo_batch' computes this",
        ),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "advantage_estimator": "opo"},
            "multi_objective_aggregation='normalize_then_sum' would be .*; advantage_estimator='gdpo' computes this",
        ),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "batch"},
            "scale_rewards='batch' would be ignored: advantage_estimator='gdpo' replaces TRL's estimator$",
        ),
        ({"scale_rewards": "batch", "canon_mu": 0.5}, "canon_mu=0.5 would be ignored: .*'grpo_batch'"),
        ({"scale_rewards": "bach"}, "scale_rewards='bach' would be ignored"),
        ({"policy_loss": "cov"}, r"policy_loss='cov' is unknown(.*); choose one of \['clip_cov', 'disco', "),
        ({"policy_loss_kwargs": {"ratio": 0.1}}, "would be ignored: policy_loss is None"),
        (
            {"policy_loss": "kl_cov", "policy_loss_kwargs": {"ratio": 0.1}},
            r"policy_loss 'kl_cov': takes no option 'ratio'.*; it takes \['fraction', 'coef', 'scope'\]",
        ),
        (
            {"policy_loss": "clip_cov", "policy_loss_kwargs": {"epsilon_low": 0.1}},
            r"takes no option 'epsilon_low'.*; it takes \['ratio', 'low', 'high', 'scope'\]",
        ),
        (
            {"policy_loss": "clip_cov", "policy_loss_kwargs": {"ratio": 20}},
            r"policy_loss 'clip_cov': ratio=20 must lie in \(0, 1\]",
        ),
        ({"policy_loss": "clip_cov", "policy_loss_kwargs": {"low": 6.0}}, "low=6.0 must be less than high=5.0"),
        ({"policy_loss": "kl_cov", "policy_loss_kwargs": {"coef": -1.0}}, r"coef=-1.0 must lie in \[0, inf\)"),
        (
            {"policy_loss": "kl_cov", "policy_loss_kwargs": {"scope": "rank"}},
            "policy_loss 'kl_cov': scope='rank' must be 'micro_batch' or 'batch'",
        ),
        (
            {"policy_loss": "clip_cov", "loss_type": "cispo"},
            "loss_type='cispo' does not work with policy_loss='clip_cov'",
        ),
        (
            {"policy_loss": "clip_cov", "importance_sampling_level": "sequence"},
            "importance_sampling_level='sequence' does not work with",
        ),
        ({"policy_loss": "kl_cov", "delta": 2.0}, "delta=2.0 does not work with policy_loss='kl_cov'"),
        (
            {"policy_loss": "kl_cov", "off_policy_mask_threshold": 0.5},
            "off_policy_mask_threshold=0.5 does not",
        ),
        (
            {"policy_loss": "kl_cov", "epsilon_high": 0.3},
            "epsilon_high=0.3 would be ignored: policy_loss='kl_cov' clips no ratio",
        ),
        (
            {
                "policy_loss": "kl_cov",
                "policy_loss_kwargs": {"scope": "batch"},
                "gradient_accumulation_steps": 2,
                "steps_per_generation": 3,
            },
            "make steps_per_generation=3 a multiple of gradient_accumulation_steps=2",
        ),
        (
            {"policy_loss": "clip_cov", "top_entropy_quantile": 0.2},
            "top_entropy_quantile=0.2 does not work with policy_loss='clip_cov': it removes from the loss most",
        ),
        ({"policy_loss": "kl_cov", "top_entropy_quantile": 0.9}, "top_entropy_quantile=0.9 does not work with"),
        *(
            ({"generation_kwargs": {name: value}}, f"generation_kwargs has {name}={value!r}, which {where} sets; set")
            for name, value, where in [
                ("temperature", 0.5, "the field temperature"),
                ("seed", 1, "the field seed"),
                ("max_new_tokens", 3, "the field max_completion_length"),
                ("max_tokens", 3, "the field max_completion_length"),
                ("max_length", 3, "the field max_completion_length"),
                ("n", 2, "the field num_generations"),
                ("num_return_sequences", 2, "the field num_generations"),
                ("eos_token_id", 5, r"the tokenizer \(processing_class\)"),
                ("pad_token_id", 5, r"the tokenizer \(processing_class\)"),
                ("bos_token_id", 5, r"the tokenizer \(processing_class\)"),
                ("do_sample", False, "TRL itself"),
                ("logprobs", 1, "TRL itself"),
            ]
        ),
        ({"generation_kwargs": {"top_p": 0.9}, "top_p": 0.5}, "has top_p=0.9, which the field top_p sets"),
        ({"generation_kwargs": {"min_p": 0.1}, "min_p": 0.2}, "has min_p=0.1, which the field min_p sets"),
        ({"generation_kwargs": '{"temperature": 0.5}'}, "generation_kwargs has temperature=0.5, which the field temp"),
        ({"dynamic_sampling_kwargs": {"lower": 0.1}}, "would be ignored: dynamic_sampling is False"),
        (
            {"dynamic_sampling": True, "dynamic_sampling_kwargs": {"rounds": 2}},
            r"dynamic_sampling_kwargs: takes no option 'rounds' \(did you mean 'max_rounds'\?\); it takes \['max",
        ),
        (
            {"dynamic_sampling": True, "dynamic_sampling_kwargs": {"lower": 0.9, "upper": 0.2}},
            "dynamic_sampling_kwargs: lower=0.9 must be at most upper=0.2",
        ),
        ({"dynamic_sampling": True, "entropy_coef": 0.1}, "entropy_coef=0.1 and .*cannot skip positions"),
        ({"advantage_estimator": "psr", "advantage_estimator_kwargs": {"w": 1}}, r"no option 'w'; it takes \[\]"),
        (
            {"advantage_estimator": "a_grae", "advantage_estimator_kwargs": {"form": "code"}},
            "advantage_estimator 'a_grae': form='code' must be 'paper' or 'released'",
        ),
        (
            {"dynamic_sampling": True, "dynamic_sampling_kwargs": {"exhausted": "stop"}},
            "dynamic_sampling_kwargs: exhausted='stop' must be 'shrink', 'keep' or 'error'",
        ),
    ],
    ids=lambda value: ", ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_config(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "sapo", "epsilon_high": 0.3},
        {"loss_type": "vespo", "epsilon_high": None},
        {"loss_type": "a loss of a later release"},
        {"top_k": -1},
        {"learning_rate": 2.0, "optim": "sgd"},
        {"max_steps": 0},
        {"max_grad_norm": None},
        {"reward_weights": [1e7]},
        {"beta": 0.0, "sync_ref_model": True},
    ],
    ids=str,
)
def test_options_of_trl_are_left_to_trl(options):
    made = config(**options)
    assert {name: getattr(made, name) for name in options} == options


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(ValueError, match=r"stop_strings=\['3'\], for which transformers needs a tokenizer"):
        config(generation_kwargs={"stop_strings": ["3"]})


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"preset 'dr_entropy' is unknown; choose one of \['dr_entropy_token_budget'"):
        CANONConfig.from_preset("dr_entropy")


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    made = CANONConfig.from_preset(name, output_dir="out", use_cpu=True, bf16=False)
    metric = {"dr_length_on_mean": "length", "dr_random": "random"}.get(name, "entropy")
    schedule = {
        "dr_entropy_token_budget_annel": "intra_to_inter",
        "dr_entropy_token_budget_cosine_restart": "cosine_intra_to_inter",
        "dr_entropy_token_budget_cosine_restart_r": "cosine_inter_to_intra",
    }.get(name, "constant")
    assert (made.canon_metric, made.canon_mu_schedule, made.canon_mu) == (metric, schedule, 1.0)
    assert made.alpha_group(METRICS.get(metric)) == ("higher" if metric == "length" else "lower")
    assert (made.loss_type, made.scale_rewards, made.beta) == ("dr_grpo", "none", 0.0)
    assert (made.epsilon, made.epsilon_high, made.num_generations, made.temperature) == (0.2, 0.28, 16, 1.0)


def test_preset_overrides():
    made = CANONConfig.from_preset("dr_length_on_mean", output_dir="out", bf16=False, canon_alpha=0.8, canon_mu=0.5)
    assert (made.canon_metric, made.canon_alpha, made.canon_mu) == ("length", 0.8, 0.5)


@pytest.mark.parametrize(
    ("size", "message"),
    [(2, "leaves a half with one response"), (3, "leaves a half with one"), (5, "is odd"), (4, None), (6, None)],
)
def test_small_and_odd_groups_give_a_warning(size, message, caplog):
    with caplog.at_level(logging.WARNING):
        config(num_generations=size, per_device_train_batch_size=size, per_device_eval_batch_size=size)
    assert (message in caplog.text) if message else (caplog.text == "")


@requires_metrics("entropie")
def misspelt(rollout):
    return rollout.rewards


@pytest.mark.parametrize(
    ("trainer_options", "options", "message"),
    [
        (
            {"train_dataset": Dataset.from_dict({"question": ["1"]})},
            {},
            r"train_dataset has no column 'prompt'.*question",
        ),
        ({"eval_dataset": Dataset.from_dict({"q": ["1"]})}, {}, "eval_dataset has no column 'prompt'"),
        ({"train_dataset": prompts(1)}, {}, "train_dataset has 1 prompts, but a rollout needs 2"),
        ({"eval_dataset": {"a": Dataset.from_dict({"q": ["1"]})}}, {}, "eval_dataset 'a' has no column 'prompt'"),
        ({"eval_dataset": prompts(4).select([])}, {}, "eval_dataset is empty"),
        (
            {"train_dataset": prompts(1).to_iterable_dataset()},
            {},
            "train_dataset has 1 prompts, but a rollout needs 2",
        ),
        (
            {"train_dataset": prompts(4).add_column("prompts", ["a"] * 4).add_column("trainer_state", ["b"] * 4)},
            {},
            r"train_dataset has the columns \['prompts', 'trainer_state'\], but reward functions take other arguments",
        ),
        (
            {"eval_dataset": {"a": prompts(4).add_column("completions", ["a"] * 4).to_iterable_dataset()}},
            {},
            r"eval_dataset 'a' has the columns \['completions'\]",
        ),
        (
            {},
            {"accuracy_reward": "correct"},
            r"accuracy_reward='correct' must be one of the reward functions \['accuracy'\]",
        ),
        (
            {"rollout_func": print},
            {"entropy_source": "generation"},
            "entropy_source='generation' does not work with rollo",
        ),
        ({}, {"entropy_source": "generation", "generation_kwargs": {"num_beams": 2}}, "does not work with num_beams"),
        ({}, {"entropy_source": "forward", "canon_metric": "length"}, "entropy_source='forward' would be ignored"),
        ({}, {"entropy_source": "generation", "advantage_estimator": "grpo"}, "'generation' would be ignored"),
        (
            {"environment_factory": print},
            {"dynamic_sampling": True},
            "dynamic_sampling=True does not work with env",
        ),
        ({"advantage_estimator": misspelt}, {}, "requires_metrics='entropie' is unknown"),
        ({"advantage_estimator": print}, {"canon_mu": 0.2}, r"\['canon_mu'\] would be ignored"),
        ({"canon_metric": len}, {"canon_metric": "length"}, "canon_metric is given to the trainer and as args"),
        (
            {"canon_metric": len},
            {"advantage_estimator": "grpo"},
            "canon_metric is used by advantage_estimator='canon'",
        ),
    ],
    ids=lambda value: ", ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_trainer(trainer_options, options, message):
    with pytest.raises(ValueError, match=message):
        build(trainer_options, **options)


def test_the_trainer_rejects_a_config_of_trl():
    with pytest.raises(TypeError, match="args is a GRPOConfig; it must be a CANONConfig"):
        CANONTrainer(NO_MODEL, TASK.reward, GRPOConfig("out", bf16=False), prompts(8))


def test_the_model_is_loaded_last():
    with pytest.raises(OSError):
        build()


def too_few(completions, **kwargs):
    return [1.0] * (len(completions) - 1)


def not_finite(completions, **kwargs):
    return [float(index) if index != 5 else float("nan") for index in range(len(completions))]


def infinite(completions, **kwargs):
    return [float("inf") if index >= 6 else 0.0 for index in range(len(completions))]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (too_few, r"metric 'too_few' returned values of shape \(7,\) for 8 completions"),
        (not_finite, "metric 'not_finite' is nan for completion 5; it must be finite"),
        (infinite, "metric 'infinite' is inf for completion 6"),
    ],
)
def test_metric_function(tmp_path, metric, message):
    trainer = make_trainer(tmp_path, trainer_options={"canon_metric": metric})
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_an_error_leaves_no_half_written_checkpoint(tmp_path):
    """When a metric fails in the second rollout, the only checkpoint is the complete one of the first."""
    calls = []

    def breaks_later(completions):
        calls.append(len(completions))
        return [1.0] * len(completions) if len(calls) == 1 else [float("nan")] * len(completions)

    saving = {"save_strategy": "steps", "save_steps": 1, "num_iterations": 2, "max_steps": 4}
    trainer = make_trainer(tmp_path, trainer_options={"canon_metric": breaks_later}, **saving)
    with pytest.raises(ValueError, match="metric 'breaks_later' is nan for completion 0"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint*")) == ["checkpoint-1", "checkpoint-2"]
    assert not list(tmp_path.rglob("*.partial"))
    calls.clear()
    mended = {"canon_metric": lambda mask: mask.sum(1)}
    trainer = make_trainer(tmp_path, trainer_options=mended, resume_with_changes=True, **saving)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert trainer.state.global_step == 4


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (lambda rollout: rollout.rewards[:, :1], r"returned shape \(2, 1\); it must be \(2, 4\)"),
        (lambda rollout: rollout.rewards.unsqueeze(-1), r"returned shape \(2, 4, 1\).* with T at least"),
        (lambda rollout: rollout.rewards / 0, "returned (nan|inf) for completion 0; advantages must be finite"),
    ],
)
def test_estimator_function(tmp_path, estimator, message):
    trainer = make_trainer(tmp_path, trainer_options={"advantage_estimator": estimator})
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_reading_an_undeclared_metric_names_the_decorator(tmp_path):
    trainer = make_trainer(
        tmp_path, trainer_options={"advantage_estimator": lambda rollout: rollout.metrics["entropy"]}
    )
    with pytest.raises(KeyError, match=r"'entropy' was not computed.*: @requires_metrics\('entropy'\)"):
        trainer.train()


def above_one(completions, **kwargs):
    return [2.0 + value for value in length_reward(completions)]


def test_accuracy_schedules_need_a_reward_in_the_unit_interval(tmp_path):
    trainer_options = {"reward_funcs": above_one}
    trainer = make_trainer(tmp_path, trainer_options=trainer_options, canon_mu_schedule="inter_to_intra")
    with pytest.raises(ValueError, match=r"reward 'above_one' gave .*; set accuracy_reward to"):
        trainer.train()
    make_trainer(tmp_path, trainer_options=trainer_options, canon_mu=0.5).train()  # nothing reads the accuracy


def test_too_many_cosine_cycles_for_the_dataset(tmp_path):
    """Without max_steps the dataset sets the number of rollouts; the error comes at the first rollout already."""
    trainer = make_trainer(
        tmp_path,
        trainer_options={"train_dataset": prompts(8)},
        max_steps=-1,
        num_train_epochs=1,
        canon_mu_schedule="cosine_inter_to_intra",
        canon_cosine_warmup_ratio=0.5,
        canon_cosine_cycles=3,
    )
    with pytest.raises(ValueError, match="cycles=3 must be at most 2, the steps of total_steps=4"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("estimator", "reward", "message"),
    [
        (
            "a_grae",
            -0.5,
            r"rewards in \[0, 1\], but the weighted sum .* is -0.5 for completion 2",
        ),
        ("a_grae", 1.5, r"rewards in \[0, 1\], but .* is 1.5 for completion 2"),
        ("psr", 0.5, r"rewards in {0, 1}, but .* is 0.5 for completion 2"),
        ("nsr", -1.0, r"rewards in {0, 1}, but .* is -1.0 for completion 2"),
        ("w_reinforce", 2.0, r"rewards in {0, 1}, but .* is 2.0 for completion 2"),
    ],
)
def test_rewards_outside_the_range_of_a_method(tmp_path, estimator, reward, message):
    def rewards(completions, **kwargs):
        return [reward if index == 2 else None if index == 3 else 1.0 for index, _ in enumerate(completions)]

    trainer = make_trainer(tmp_path, trainer_options={"reward_funcs": rewards}, advantage_estimator=estimator)
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_the_range_applies_with_bound_options(tmp_path):
    estimator = partial(ESTIMATORS["a_grae"], attenuation=0.5)
    trainer_options = {"reward_funcs": above_one, "advantage_estimator": estimator}
    with pytest.raises(ValueError, match=r"defined for rewards in \[0, 1\]"):
        make_trainer(tmp_path, trainer_options=trainer_options).train()


def from_the_reference(log_probs, ref_log_probs, mask):
    return ((log_probs - ref_log_probs) * mask).mean()


class Gate:
    """A policy loss as 0.1 defined it."""

    clips_ratios = False

    def select(self, log_probs, old_log_probs, advantages, mask, generator):
        return mask

    def advantages(self, selected, log_probs, old_log_probs, advantages):
        return advantages


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"loss_function": print}, "loss_function was removed after 0.1: pass the function as policy_loss"),
        ({"reward_range": "[0, 1]"}, "reward_range was removed after 0.1: set it on the function"),
        ({"policy_loss": Gate()}, r"has select and advantages, as in 0\.1; it must be a function of the tokens"),
    ],
)
def test_errors_for_removed_options_name_the_successor(stage, message):
    shared = {"advantage_estimator": ESTIMATORS["dr_grpo"], "metrics": {}}
    with pytest.raises(TypeError, match=message):
        PluggableGRPOTrainer(NO_MODEL, TASK.reward, GRPOConfig("out", **OPTIONS), prompts(8), **shared, **stage)


@pytest.mark.parametrize(
    ("options", "loss_options", "message"),
    [
        ({"loss_type": "sapo"}, {"policy_loss": "kl_cov"}, "loss_type='sapo' does not work with policy_loss='kl_cov'"),
        ({"top_entropy_quantile": 0.5}, {"policy_loss": POLICY_LOSSES["kl_cov"]}, "top_entropy_quantile=0.5 does not"),
        ({"generation_kwargs": {"temperature": 0.5}}, {}, "generation_kwargs has temperature=0.5, which the field"),
        ({}, {"policy_loss": from_the_reference}, "reads ref_log_probs, but beta=0.0 loads no reference model"),
        (
            {"beta": 0.1},
            {"policy_loss": from_the_reference, "token_advantage": "entropy_shaped"},
            "token_advantage='entropy_shaped' would be ignored: policy_loss='from_the_reference' reads no advantages",
        ),
        ({}, {"policy_loss": "klcov"}, r"policy_loss='klcov' is unknown \(did you mean 'kl_cov'\?\)"),
        (
            {"num_generations": 8, "per_device_train_batch_size": 4, "steps_per_generation": 2},
            {"policy_loss": "disco"},
            "per_device_train_batch_size=4 cannot hold whole groups of num_generations=8",
        ),
    ],
)
def test_the_hook_rejects_options_that_it_would_ignore(options, loss_options, message):
    args = GRPOConfig("out", **(OPTIONS | options))
    shared = {
        "advantage_estimator": ESTIMATORS["dr_grpo"],
    }
    with pytest.raises(ValueError, match=message):
        PluggableGRPOTrainer(NO_MODEL, TASK.reward, args, prompts(8), **shared, **loss_options)


def test_astar_po_rejects_sampling_options_too():
    with pytest.raises(ValueError, match=r"generation_kwargs has temperature=0.5, which the field"):
        AStarPOConfig("out", generation_kwargs={"temperature": 0.5}, per_device_train_batch_size=4, bf16=False)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, True),
        ({"gradient_accumulation_steps": 2}, True),
        ({"num_iterations": 2}, False),
        ({"steps_per_generation": 2}, False),
    ],
)
@pytest.mark.parametrize("name", ["kl_cov", "dppo", "up"])
def test_one_update_per_rollout_gives_a_warning_where_a_loss_does_nothing_then(name, options, warned, caplog):
    with caplog.at_level(logging.WARNING):
        config(policy_loss=name, **options)
    assert (f"policy_loss='{name}' with one update per rollout is the plain policy gradient" in caplog.text) is warned


def test_dppo_acts_at_the_first_update_with_vllm(caplog):
    with caplog.at_level(logging.WARNING):
        config(policy_loss="dppo", use_vllm=True)
    assert "plain policy gradient" not in caplog.text


@pytest.mark.parametrize(
    ("policy_loss", "options", "message"),
    [
        ("dppo", {"epsilon": 0.3}, "epsilon=0.3 would be ignored: policy_loss='dppo' clips no ratio"),
        ("up", {"epsilon_high": 0.3}, "epsilon_high=0.3 would be ignored: policy_loss='up' clips no ratio above 1"),
        ("up", {"delta": 3.0}, "delta=3.0 does not work with policy_loss='up'"),
        ("up", {"importance_sampling_level": "sequence"}, "does not work with policy_loss='up'"),
    ],
)
def test_options_that_a_change_of_trls_loss_does_not_read(policy_loss, options, message):
    with pytest.raises(ValueError, match=message):
        config(policy_loss=policy_loss, **options)
    config(policy_loss="up", epsilon=0.3)

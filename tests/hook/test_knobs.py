"""Controllers: the temperature of the scores in TRL, and knobs that move between rollouts and optimiser steps."""

import pytest
import torch
from observe import keep_tokens, on_generate, on_outputs, scored_entropy
from peft import LoraConfig
from steered import KeepingE3, Ramp
from toy import (
    assert_resumes,
    assert_same_parameters,
    logged,
    make_trainer,
    parameters,
    prompts,
    rollout_with_tool,
)

from canon_trl import CANONConfig
from canon_trl.controllers import E3Temperature
from canon_trl.hook.temperature import Temperature
from canon_trl.token_advantages import TOKEN_ADVANTAGES
from canon_trl.trl_release import FUSED_HEAD

SETTINGS = {
    "reference": {"beta": 0.1},
    "lora": {"beta": 0.1, "trainer_options": {"peft_config": LoraConfig(r=2)}},
    "bf16": {"beta": 0.1, "bf16": True},
    "float32 head": {"beta": 0.1, "bf16": True, "cast_lm_head_to_fp32": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
}
OPTIONS = {"target_entropy": 0.3, "init_steps": 0}
E3, KEEPING = {"e3_temperature": OPTIONS}, {"steered:KeepingE3": OPTIONS}
SHAPED = {"token_advantage": "entropy_shaped"}


def ramp(knob, by=0.1):
    return {"steered:Ramp": {"steers": knob, "by": by}}


@pytest.fixture(autouse=True)
def nothing_seen():
    KeepingE3.seen.clear()
    Ramp.seen.clear()


def scores(folder, temperature, **options):
    """What two steps on fixed responses see of the policy and the reference; the weights do not change."""
    options = {"trainer_options": {}, "learning_rate": 0.0, "max_steps": 2} | options
    options["trainer_options"] = options["trainer_options"] | {"rollout_func": rollout_with_tool}
    trainer = make_trainer(folder, temperature=temperature, **options)
    seen = keep_tokens(trainer)
    trainer.train()
    names = ("log_probs", "entropies", "ref_log_probs")
    return [[value for name in names if (value := getattr(tokens, name)) is not None] for tokens in seen]


@pytest.mark.parametrize("setting", SETTINGS)
def test_scores_are_those_of_a_trainer_made_at_the_temperature(setting, tmp_path):
    """Also after training has wrapped the policy."""
    made = scores(tmp_path / "made", 0.7, **SETTINGS[setting])
    moved = scores(tmp_path / "moved", 1.0, controller=ramp("temperature", by=-0.3), **SETTINGS[setting])
    for before, wanted in zip(moved[0], made[0], strict=True):
        assert not torch.equal(before, wanted)
    for after, wanted in zip(moved[1], made[1], strict=True):
        assert torch.equal(after, wanted)


@pytest.mark.skipif(not FUSED_HEAD, reason="the scores read the trainer's temperature")
@pytest.mark.parametrize("name", ["model", "ref_model"])
def test_a_head_without_a_known_temperature_is_rejected(name, tmp_path):
    trainer = make_trainer(tmp_path, beta=0.1)
    getattr(trainer, name).forward = lambda **inputs: None
    kind = {"model": "policy", "ref_model": "reference model"}[name]
    with pytest.raises(RuntimeError, match=rf"the {kind}, a Qwen\w+, stores the temperature 1\.0 .* cannot reach"):
        Temperature(trainer)


@pytest.mark.skipif(not FUSED_HEAD, reason="the scores read the trainer's temperature")
def test_a_head_made_at_another_temperature_is_rejected(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.temperature = 0.5
    with pytest.raises(RuntimeError, match=r"stores the temperature 0\.5 "):
        Temperature(trainer)


def test_e3_moves_the_temperature_between_rollouts(tmp_path):
    """Two optimiser steps per rollout, two micro-batches per step."""
    trainer = make_trainer(
        tmp_path,
        controller=KEEPING,
        max_steps=8,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
    )
    sampled = []
    on_generate(trainer, lambda config: sampled.append((trainer.state.global_step, config.temperature)))
    trainer.train()
    replayed = E3Temperature(trainer.model.config.vocab_size, **OPTIONS)
    moved = [replayed.update({"entropy": entropy}) for entropy, _ in KeepingE3.seen]
    assert moved == [temperature for _, temperature in KeepingE3.seen]
    temperatures = [1.0, *moved[:-1]]
    assert sampled == [(2 * step, temperature) for step, temperature in enumerate(temperatures)]
    assert len(set(temperatures)) == 4
    steered = [entry["controller/temperature"] for entry in logged(trainer)]
    assert steered == [temperature for temperature in temperatures for _ in range(2)]


def test_e3_reads_the_entropy_of_the_rollout_at_its_temperature(tmp_path):
    """Compared with an independent pass over full logits; the weights do not change."""
    options = {"learning_rate": 0.0, "per_device_train_batch_size": 4, "steps_per_generation": 2, "num_iterations": 2}
    trainer = make_trainer(tmp_path, controller=KEEPING, max_steps=12, **options)
    means = []

    def score(output):
        lengths = output["completion_mask"].sum(dim=1)
        means.append(float((scored_entropy(trainer, output)[0] * lengths).sum() / lengths.sum()))

    on_outputs(trainer, score)
    trainer.train()
    assert len(means) == 3
    assert [entropy for entropy, _ in KeepingE3.seen] == pytest.approx(means, rel=1e-5)


def test_other_knobs_move_at_every_optimiser_step(tmp_path):
    """They read the numbers of the last step and leave the options in the dict unchanged."""
    controller = [ramp("epsilon_high"), ramp("entropy_shaped.alpha", by=0.4)]
    trainer = make_trainer(tmp_path, controller=controller, num_iterations=2, epsilon_high=0.2, **SHAPED)
    clips = []
    trainer.on_tokens(lambda tokens: clips.append(tokens.clip[1]))
    trainer.train()
    assert clips == pytest.approx([0.2, 0.3, 0.4])
    assert [entry["controller/epsilon_high"] for entry in logged(trainer)] == clips
    assert [entry["controller/entropy_shaped.alpha"] for entry in logged(trainer)] == pytest.approx([0.4, 0.8, 1.2])
    for measured, entry in zip(Ramp.seen[::2], logged(trainer), strict=True):
        assert measured["entropy"] == pytest.approx(entry["entropy"], rel=1e-5)
        assert measured["clip_ratio/region_mean"] == entry["clip_ratio/region_mean"]
    assert Ramp.seen[0]["reward"] == logged(trainer)[0]["reward"]
    assert TOKEN_ADVANTAGES["entropy_shaped"].options == {}


def test_an_entropy_bonus_may_start_at_0(tmp_path):
    """From the same weights, the third step's gradient is that of a run with a constant coefficient of 0.2."""
    constant = make_trainer(tmp_path / "constant", entropy_coef=0.2, learning_rate=0.0)
    steered = make_trainer(tmp_path / "steered", controller=ramp("entropy_coef"), learning_rate=0.0)
    for trainer in (constant, steered):
        torch.manual_seed(0)
        trainer.train()
    assert [entry["controller/entropy_coef"] for entry in logged(steered)] == pytest.approx([0.0, 0.1, 0.2])
    norms = [[entry["grad_norm"] for entry in logged(trainer)] for trainer in (steered, constant)]
    assert norms[0][2] == pytest.approx(norms[1][2], rel=1e-6)
    assert norms[0][0] != pytest.approx(norms[1][0], rel=1e-3)


def test_the_adaptive_clip_follows_the_entropy(tmp_path):
    """Above the target it returns to the value of the config; without room to move it changes nothing."""
    options = {"num_iterations": 2, "epsilon_high": 0.2, "max_steps": 4}
    low = {"target_entropy": 1e-3, "step": 0.25}
    plain, fixed, wide, narrow = trainers = [
        make_trainer(tmp_path / name, controller={"adaptive_clip": chosen} if chosen else None, **options)
        for name, chosen in {
            "plain": None,
            "fixed": {"most": 0.0},
            "wide": {"target_entropy": 100.0, "step": 0.25, "most": 0.5},
            "narrow": low,
        }.items()
    ]
    for trainer in trainers:
        torch.manual_seed(0)
        trainer.train()
    clips = [[entry["controller/epsilon_high"] for entry in logged(trainer)] for trainer in (wide, narrow, fixed)]
    assert clips == [pytest.approx([0.2, 0.45, 0.7, 0.7]), [0.2] * 4, [0.2] * 4]
    for unmoved in (fixed, narrow):
        assert_same_parameters(parameters(unmoved), parameters(plain))


@pytest.mark.parametrize(
    "options",
    [
        {"controller": E3},
        {"controller": E3, "num_iterations": 2, "steps_per_generation": 2, "per_device_train_batch_size": 4},
        {"controller": ramp("epsilon_high", by=-0.05), "num_iterations": 2},
        {"controller": {"adaptive_clip": {"step": 0.05}}, "num_iterations": 2},
        {"controller": [E3, ramp("entropy_coef")]},
        {"controller": ramp("entropy_shaped.alpha"), "num_iterations": 2} | SHAPED,
        {"controller": ramp("clip_cov.ratio"), "num_iterations": 2, "policy_loss": "clip_cov"},
    ],
    ids=[
        "temperature",
        "in a rollout",
        "epsilon_high",
        "the adaptive clip",
        "two knobs",
        "an option of a token advantage",
        "an option of the policy loss",
    ],
)
def test_a_run_resumes_as_if_it_had_never_stopped(options, tmp_path):
    assert_resumes(make_trainer, tmp_path, **options)


def test_a_second_run_starts_over(tmp_path):
    trainer = make_trainer(tmp_path, controller=[E3, ramp("entropy_coef")])
    for _ in range(2):
        trainer.state.log_history.clear()
        trainer.train()
        assert [entry["controller/entropy_coef"] for entry in logged(trainer)] == pytest.approx([0.0, 0.1, 0.2])
        first, *others = [entry["controller/temperature"] for entry in logged(trainer)]
        assert first == 1.0
        assert 1.0 not in others


def test_evaluation_uses_the_temperature_of_the_config(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "temperature": 0.9}
    datasets = {"trainer_options": {"eval_dataset": prompts(4)}}
    trainer = make_trainer(tmp_path, controller=KEEPING, **options, **datasets)
    sampled = {True: [], False: []}
    on_generate(trainer, lambda config: sampled[trainer.model.training].append(config.temperature))
    trainer.train()
    moved = [temperature for _, temperature in KeepingE3.seen]
    assert set(sampled[False]) == {0.9}
    assert sampled[True] == [0.9, *moved[:-1]]
    trainer.evaluate()
    assert set(sampled[False]) == {0.9}
    assert trainer.temperature == moved[-1]


class Broken(Ramp):
    def update(self, measured):
        return float("nan")


class Negative(Ramp):
    def __init__(self, start):
        super().__init__(start, steers="temperature")

    def update(self, measured):
        return -1.0


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        (Broken, "the controller of 'epsilon_high' returned nan; it must return a finite number"),
        (Negative, r"temperature=-1\.0 must be above 0"),
    ],
)
def test_controller_results_are_checked(maker, message, tmp_path):
    trainer = make_trainer(tmp_path, controller=maker, num_iterations=2)
    with pytest.raises(ValueError, match=message):
        trainer.train()


@pytest.mark.parametrize(
    ("controller", "message"),
    [
        ("e3_temprature", r"controller='e3_temprature' is unknown \(did you mean 'e3_temperature'\?\)"),
        ({"e3_temperature": {"target": 1.0}}, "takes no option 'target'"),
        ({"e3_temperature": {"temperature": 0.5}}, "takes no option 'temperature'"),
        ({"e3_temperature": {"target_entropy": -1.0}}, r"target_entropy=-1\.0 must lie in \(0, inf\)"),
        ({"e3_temperature": {"init_steps": 0}}, "init_steps=0 needs target_entropy"),
        ("toy:length_reward", r"toy:length_reward reads \['completions'.*available: \['run', 'start', 'temp"),
        ([E3, KEEPING], "'e3_temperature' and 'steered:KeepingE3' both steer 'temperature'"),
        (dict, "dict"),
        (5, "controller=5 is unknown"),
        ('{"e3_temperature": ', "is not JSON"),
    ],
)
def test_the_config_rejects_invalid_controllers(controller, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CANONConfig(str(tmp_path), controller=controller, bf16=False)


@pytest.mark.parametrize(
    ("knob", "options", "message"),
    [
        ("temprature", {}, r"nothing reads \(did you mean 'temperature'\?\)"),
        ("entropy_coef", {"use_adaptive_entropy": True}, "use_adaptive_entropy=True already steers"),
        ("epsilon_high", {"loss_type": "sapo"}, "loss_type='sapo' clips no ratios"),
        ("epsilon_high", {"policy_loss": "kl_cov"}, "'kl_cov' clips no ratios"),
        ("entropy_coef", {"policy_loss": "disco"}, "policy_loss='disco' does not read"),
        ("clip_cov.ratoi", {"policy_loss": "clip_cov"}, r"not a numeric option of .* \(did you mean 'ratio'"),
        ("clip_cov.scope", {"policy_loss": "clip_cov"}, "not a numeric option of 'clip_cov'"),
        ("entropy_shaped.alpha", {}, "which nothing reads"),
        ("entropy_shaped.alhpa", SHAPED, r"not a numeric option of 'entropy_shaped' \(did you mean 'alpha'"),
    ],
)
def test_knobs_that_nothing_reads_are_rejected(knob, options, message, tmp_path):
    with pytest.raises(ValueError, match=rf"controller 'steered:Ramp' steers '{knob}', .*{message}"):
        make_trainer(tmp_path, controller=ramp(knob), **options)

"""Controllers: the temperature of the scores in TRL, and knobs that move between rollouts and optimiser steps."""

import pytest
import torch
from observe import scored_entropy
from peft import LoraConfig
from steered import KeepingE3, Ramp
from toy import assert_resumes, logged, make_trainer, prompts

from canon_trl import CANONConfig
from canon_trl.controllers import E3Temperature
from canon_trl.hook.temperature import Temperature
from canon_trl.token_advantages import TOKEN_ADVANTAGES

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


def scores(trainer):
    """Log-probabilities and entropies of fixed responses, of the policy and of the reference."""
    ids = torch.tensor(trainer.processing_class(["12+34=46#", "55+13=68#"])["input_ids"])
    found = []
    with torch.no_grad():
        for model in (trainer.model, trainer.ref_model):
            if model is not None:
                is_policy = model is trainer.model
                found += trainer._get_per_token_logps_and_entropies(
                    model, ids, torch.ones_like(ids), 4, compute_entropy=is_policy
                )
    return [tensor for tensor in found if tensor is not None]


@pytest.mark.parametrize("setting", SETTINGS)
def test_scores_are_those_of_a_trainer_made_at_the_temperature(setting, tmp_path):
    """Also once a run has wrapped the policy; its learning rate is 0."""

    def make(temperature):
        torch.manual_seed(0)
        options = {"learning_rate": 0.0, "max_steps": 1} | SETTINGS[setting]
        trainer = make_trainer(tmp_path / str(temperature), temperature=temperature, **options)
        knob = Temperature(trainer)
        trainer.train()
        return trainer, knob

    (there, _), (here, knob) = make(0.7), make(1.0)
    before = scores(here)
    knob.value = 0.7
    for moved, made, unmoved in zip(scores(here), scores(there), before, strict=True):
        assert torch.equal(moved, made)
        assert not torch.equal(moved, unmoved)


@pytest.mark.parametrize("name", ["model", "ref_model"])
def test_scores_that_keep_the_temperature_elsewhere_are_refused(name, tmp_path):
    trainer = make_trainer(tmp_path, beta=0.1)
    getattr(trainer, name).forward = lambda **inputs: None
    told = {"model": "policy", "ref_model": "reference model"}[name]
    with pytest.raises(RuntimeError, match=rf"the {told}, a Qwen\w+, stores the temperature 1\.0 .* cannot reach"):
        Temperature(trainer)


def test_a_head_that_was_made_at_another_temperature_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.temperature = 0.5
    with pytest.raises(RuntimeError, match=r"keeps the temperature 0\.5 "):
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
    sampled, generate = [], trainer._generate

    def keep(prompts):
        sampled.append((trainer.state.global_step, trainer.temperature, trainer.generation_config.temperature))
        return generate(prompts)

    trainer._generate = keep
    trainer.train()
    replayed = E3Temperature(trainer.model.config.vocab_size, **OPTIONS)
    moved = [replayed.update({"entropy": entropy}) for entropy, _ in KeepingE3.seen]
    assert moved == [temperature for _, temperature in KeepingE3.seen]
    temperatures = [1.0, *moved[:-1]]
    assert sampled == [(2 * step, t, t) for step, t in enumerate(temperatures)]
    assert len(set(temperatures)) == 4
    steered = [entry["controller/temperature"] for entry in logged(trainer)]
    assert steered == [temperature for temperature in temperatures for _ in range(2)]


def test_e3_reads_the_entropy_of_the_rollout_at_its_temperature(tmp_path):
    """Compared with an independent pass over full logits; the weights do not change."""
    options = {"learning_rate": 0.0, "per_device_train_batch_size": 4, "steps_per_generation": 2, "num_iterations": 2}
    trainer = make_trainer(tmp_path, controller=KEEPING, max_steps=12, **options)
    means, generate = [], trainer._generate_and_score_completions

    def score(inputs):
        output = generate(inputs)
        lengths = output["completion_mask"].sum(dim=1)
        means.append(float((scored_entropy(trainer, output)[0] * lengths).sum() / lengths.sum()))
        return output

    trainer._generate_and_score_completions = score
    trainer.train()
    assert len(means) == 3
    assert [entropy for entropy, _ in KeepingE3.seen] == pytest.approx(means, rel=1e-5)


def test_other_knobs_move_at_every_optimiser_step(tmp_path):
    """On the numbers of the last step; the options that the dict holds stay as they are."""
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


def test_an_entropy_bonus_may_begin_at_nothing(tmp_path):
    """At the third step the gradient is that of a run whose coefficient was 0.2 all along, from the same weights."""
    constant = make_trainer(tmp_path / "constant", entropy_coef=0.2, learning_rate=0.0)
    steered = make_trainer(tmp_path / "steered", controller=ramp("entropy_coef"), learning_rate=0.0)
    for trainer in (constant, steered):
        torch.manual_seed(0)
        trainer.train()
    assert [entry["controller/entropy_coef"] for entry in logged(steered)] == pytest.approx([0.0, 0.1, 0.2])
    norms = [[entry["grad_norm"] for entry in logged(trainer)] for trainer in (steered, constant)]
    assert norms[0][2] == pytest.approx(norms[1][2], rel=1e-6)
    assert norms[0][0] != pytest.approx(norms[1][0], rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"controller": E3},
        {"controller": E3, "num_iterations": 2, "steps_per_generation": 2, "per_device_train_batch_size": 4},
        {"controller": ramp("epsilon_high", by=-0.05), "num_iterations": 2},
        {"controller": [E3, ramp("entropy_coef")]},
        {"controller": ramp("entropy_shaped.alpha"), "num_iterations": 2} | SHAPED,
        {"controller": ramp("clip_cov.ratio"), "num_iterations": 2, "policy_loss": "clip_cov"},
    ],
    ids=["temperature", "in a rollout", "epsilon_high", "two knobs", "an option", "of the policy loss"],
)
def test_a_run_resumes_as_if_it_had_never_stopped(options, tmp_path):
    assert_resumes(make_trainer, tmp_path, **options)


def test_a_second_run_begins_anew(tmp_path):
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
    sampled, generate = {True: [], False: []}, trainer._generate

    def keep(prompts):
        sampled[trainer.model.training].append((trainer.temperature, trainer.generation_config.temperature))
        return generate(prompts)

    trainer._generate = keep
    trainer.train()
    moved = [temperature for _, temperature in KeepingE3.seen]
    assert set(sampled[False]) == {(0.9, 0.9)}
    assert sampled[True] == [(t, t) for t in [0.9, *moved[:-1]]]
    trainer.evaluate()
    assert set(sampled[False]) == {(0.9, 0.9)}
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
def test_what_a_controller_returns_is_checked(maker, message, tmp_path):
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
def test_controllers_that_cannot_be_are_refused_in_the_config(controller, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CANONConfig(str(tmp_path), controller=controller, bf16=False)


@pytest.mark.parametrize(
    ("knob", "options", "message"),
    [
        ("temprature", {}, r"nothing here reads \(did you mean 'temperature'\?\)"),
        ("entropy_coef", {"use_adaptive_entropy": True}, "use_adaptive_entropy=True steers already"),
        ("epsilon_high", {"loss_type": "sapo"}, "loss_type='sapo' clips no ratios"),
        ("epsilon_high", {"policy_loss": "kl_cov"}, "'kl_cov' clips no ratios"),
        ("entropy_coef", {"policy_loss": "disco"}, "the loss 'disco' does not read"),
        ("clip_cov.ratoi", {"policy_loss": "clip_cov"}, r"no number among .* \(did you mean 'ratio'"),
        ("clip_cov.scope", {"policy_loss": "clip_cov"}, "no number among the options of 'clip_cov'"),
        ("entropy_shaped.alpha", {}, "which nothing here reads"),
        ("entropy_shaped.alhpa", SHAPED, r"no number among the options of 'entropy_shaped' \(did you mean 'alpha'"),
    ],
)
def test_knobs_that_nothing_reads_are_refused(knob, options, message, tmp_path):
    with pytest.raises(ValueError, match=rf"controller 'steered:Ramp' steers '{knob}', .*{message}"):
        make_trainer(tmp_path, controller=ramp(knob), **options)

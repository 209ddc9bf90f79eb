"""A probe from the model to the verdict: what it reports, resumes, refuses and writes."""

import json
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from canon_trl.advantages import dr_grpo_advantage, requires_metrics
from canon_trl.evaluation import ProbeOptions, probe
from canon_trl.evaluation.estimates import Estimate
from canon_trl.evaluation.probing import run
from canon_trl.evaluation.probing.estimator_statistics import EstimatorStatistics, PolicyGradient
from canon_trl.evaluation.probing.metric_statistics import MetricStatistics
from canon_trl.evaluation.probing.prompt_statistics import describe_prompts
from canon_trl.evaluation.probing.verdict import conclude, corrected_sign
from canon_trl.tasks import TASKS

TASK = TASKS["arithmetic"]
SMALL = ProbeOptions(num_prompts=24, num_samples=8, max_completion_length=40, chunk_prompts=8, target_entropy=None)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TASK.model_path)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TASK.model_path)


def signs(completions, **kwargs):
    return [float(text.count("=")) for text in completions]


@requires_metrics(signs)
def fewer_signs(rollout):
    return dr_grpo_advantage(rollout.rewards) / (1 + rollout.metrics["signs"])


def by_token(rewards, width):
    return dr_grpo_advantage(rewards).unsqueeze(-1).expand(-1, -1, int(width))


def small_probe(model, tokenizer, options=SMALL, reward=TASK.reward, **kwargs):
    return probe(model, tokenizer, TASK.dataset("train", 100), reward, options, progress=False, **kwargs)


def test_a_whole_probe(model, tokenizer, tmp_path):
    weights = [parameter.clone() for parameter in model.parameters()]
    options = replace(SMALL, metrics=[signs], estimators=[fewer_signs, {"pass_at_k": {"k": 3}}], target_entropy=0.3)
    report = small_probe(model, tokenizer, options, output_dir=tmp_path)

    assert (report.prompts.num_prompts, report.prompts.num_samples) == (24, 8)
    assert sum(report.prompts.histogram) == 24
    assert set(report.metrics) == {"entropy", "length", "surprisal", "signs", "random"}
    assert report.metrics["length"].gap.mean > 0.2 and report.metrics["entropy"].gap.mean < -0.2
    assert not any(each.trap for each in report.metrics.values())
    assert {"dr_grpo", "canon inter, signs", "canon intra, random", "canon eff, alpha 0.8"} <= set(report.estimators)
    assert {"fewer_signs", "pass_at_k k=2", "pass_at_k k=3"} <= set(report.estimators)
    assert "works on single tokens" in report.left_out["gtpo"] and len(report.left_out) == 1
    assert report.estimators["dr_grpo"].gain.mean == pytest.approx(1)
    assert report.estimators["rloo"].cosine.mean == pytest.approx(1)
    assert report.estimators["canon inter, length"].length.mean > 0
    # By the identity of CANON, Inter and Intra are Dr.GRPO plus and minus the same step.
    inter, intra = (report.estimators[f"canon {kind}, length"] for kind in ("inter", "intra"))
    assert inter.magnitude > 1 > intra.magnitude
    assert (report.temperature is None) == report.temperature_note.startswith("none: target_entropy=0.3")
    assert all(torch.equal(*pair) for pair in zip(weights, model.parameters(), strict=True))

    found = json.loads((tmp_path / "probe.json").read_text())
    assert found["metrics"]["length"]["gap"]["mean"] == report.metrics["length"].gap.mean
    assert found["settings"]["sketched_layers"] == 15
    page = (tmp_path / "probe.md").read_text()
    assert all(each.says in page for each in report.verdict)
    assert "None of this forecasts accuracy" in page
    assert (tmp_path / "probe.png").stat().st_size > 20_000


def test_on_hint_it_finds_the_trap_and_recommends_no_inter():
    # A copied hint pays now, but only working the answer out can become better: CANON-Inter locks copying in.
    hint = TASKS["hint"]
    model, tokenizer = (kind.from_pretrained(hint.model) for kind in (AutoModelForCausalLM, AutoTokenizer))
    options = ProbeOptions(max_completion_length=12, target_entropy=None)
    report = probe(model, tokenizer, hint.dataset("train", 1024), hint.reward, options, progress=False)
    found = report.metrics["length"]
    assert found.trap and found.gap.mean < 0 < found.ceiling_gap.mean
    (says,) = (each for each in report.verdict if each.about == "metric length")
    assert says.kind == "trap" and "Do not use canon inter, length" in says.says
    assert not any("no trap" in each.says for each in report.verdict)


def test_a_killed_probe_resumes(model, tokenizer, tmp_path):
    def whole(folder):
        report = small_probe(model, tokenizer, output_dir=folder)
        return replace(report, seconds={}).as_json()

    expected = whole(tmp_path / "whole")
    calls = 0

    def dying(completions, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return TASK.reward(completions=completions, **kwargs)

    dying.__name__ = TASK.reward.__name__
    with pytest.raises(KeyboardInterrupt):
        small_probe(model, tokenizer, reward=dying, output_dir=tmp_path / "killed")
    score, run.Collector._scored = run.Collector._scored, None  # dies before the first gradient
    with pytest.raises(TypeError):
        small_probe(model, tokenizer, reward=dying, output_dir=tmp_path / "killed")
    run.Collector._scored = score
    assert calls == 4  # the first chunk was not sampled again
    assert whole(tmp_path / "killed") == expected
    with pytest.raises(ValueError, match=r"was started with temperature=1\.0, not 0\.5"):
        small_probe(model, tokenizer, replace(SMALL, temperature=0.5), output_dir=tmp_path / "killed")


def test_a_probe_does_not_resume_with_other_rewards_or_another_chat_template(model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    options = replace(SMALL, num_prompts=8)
    small_probe(model, tokenizer, options, output_dir=tmp_path, reward_settings={"cache": 4})
    with pytest.raises(ValueError, match=r"reward_settings=\{'cache': 4\}, not \{'cache': 8\}"):
        small_probe(model, tokenizer, options, output_dir=tmp_path, reward_settings={"cache": 8})
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="was started with chat_template=None, not '"):
        small_probe(model, tokenizer, options, output_dir=tmp_path, reward_settings={"cache": 4})


def test_a_progress_bar_counts_responses(model, tokenizer, capfd):
    options = replace(SMALL, num_prompts=10)
    probe(model, tokenizer, TASK.dataset("train", 10), TASK.reward, options)
    shown = capfd.readouterr().err
    assert "sampling: 100%" in shown and "gradients: 100%" in shown and "80/80" in shown


def test_several_rewards_and_weights(model, tokenizer):
    def brief(completions, **kwargs):
        return [1.0 if len(text) < 10 else None for text in completions]

    options = replace(SMALL, reward_weights=[1.0, 0.25])
    report = small_probe(model, tokenizer, options, reward=[TASK.reward, brief])
    assert report.settings["reward_funcs"] == ["accuracy", "brief"]
    assert "is defined for rewards in {0, 1}, but there is a reward of" in report.left_out["psr"]
    assert "gdpo" in report.estimators and "psr" not in report.estimators


def test_metrics_and_rewards_of_conversations_receive_messages(model):
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    rows = [
        {**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in TASK.dataset("train", 12).to_list()
    ]

    def right(completions, answer, **kwargs):
        return [float(one[0]["content"].endswith(f"#{digit}")) for one, digit in zip(completions, answer, strict=True)]

    def letters(completions, prompts, **kwargs):
        return [
            float(len(one[0]["content"]) + len(prompt[0]["content"]))
            for one, prompt in zip(completions, prompts, strict=True)
        ]

    options = replace(SMALL, metrics=[letters])
    report = probe(model, tokenizer, Dataset.from_list(rows), right, options, progress=False)
    assert 0.2 < report.prompts.accuracy.mean < 0.7
    assert report.metrics["letters"].gap.mean == pytest.approx(report.metrics["length"].gap.mean, abs=0.1)


class NoLinearLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 3)


def test_bad_input_fails_early(model, tokenizer):
    def never(**kwargs):
        raise AssertionError("a reward was computed")

    def rejected(error, options=SMALL, data=None, model=model, tokenizer=tokenizer, reward=never):
        data = TASK.dataset("train", 4) if data is None else data
        with pytest.raises((ValueError, TypeError), match=error):
            probe(model, tokenizer, data, reward, options, progress=False)

    rejected("needs at least 2 prompts", data=TASK.dataset("train", 1))
    rejected(
        "columns \\['answer'\\]; a probe needs at least 2 prompts in 'prompt'",
        data=Dataset.from_dict({"answer": ["1"] * 9}),
    )
    talk = [[{"role": "user", "content": "1+1="}]] * 3
    rejected(
        "prompts are conversations, but the tokenizer has no chat template", data=Dataset.from_dict({"prompt": talk})
    )
    rejected("NoLinearLayers has no linear layer", model=NoLinearLayers())
    rejected("layers=\\['experts'\\] matches none", replace(SMALL, layers=["experts"]))
    rejected("metrics='entropi' is unknown \\(did you mean 'entropy'\\?\\)", replace(SMALL, metrics=["entropi"]))
    rejected("'dr_gpo' is unknown \\(did you mean 'dr_grpo'\\?\\)", replace(SMALL, estimators=["dr_gpo"]))
    rejected("takes no option 'nu'", replace(SMALL, estimators=[{"canon": {"nu": 1}}]))
    rejected("reward_funcs has None", reward=[None])
    rejected("reward_weights=\\[1.0, 2.0\\] must be one for each", replace(SMALL, reward_weights=[1.0, 2.0]))
    for options, error in {
        ("num_samples", 1): "num_samples=1 must be at least 2",
        ("num_prompts", 1): "num_prompts=1 must be at least 2",
        ("temperature", 0.0): "temperature=0.0 must be positive",
        ("loss_type", "cispo"): "loss_type='cispo' must be",
        ("confidence", 1.0): "confidence=1.0 must lie in",
        ("target_entropy", 0.0): "target_entropy=0.0 must be positive",
    }.items():
        with pytest.raises(ValueError, match=error):
            ProbeOptions(**dict([options]))


def test_rewards_without_spread_are_rejected_before_gradients(model, tokenizer, monkeypatch):
    monkeypatch.setattr(run.Collector, "score", None)
    small = replace(SMALL, num_prompts=4)

    def equal(completions, **kwargs):
        return [0.0] * len(completions)

    def unscored(completions, **kwargs):
        return [None] * len(completions)

    with pytest.raises(ValueError, match="8 responses to each of the 4 prompts have equal rewards \\(all are 0\\)"):
        small_probe(model, tokenizer, small, reward=equal)
    with pytest.raises(ValueError, match="no response to any of the 4 prompts was scored"):
        small_probe(model, tokenizer, small, reward=unscored)


def test_own_estimators_that_cannot_be_computed_are_rejected(model, tokenizer):
    small = replace(SMALL, num_prompts=4)
    with pytest.raises(ValueError, match="estimator 'by_token' works on single tokens"):
        small_probe(model, tokenizer, replace(small, estimators=[by_token]))
    with pytest.raises(ValueError, match=r"estimator 'pshw' is defined for rewards in \{-1, 1\}"):
        small_probe(model, tokenizer, replace(small, estimators=["pshw"]))


# The verdict


def known(mean, half=0.01):
    return Estimate(mean, mean - half, mean + half)


def metric(gap, ceiling, *, explained=0.2, varies=0.0):
    trap = gap.low > 0 > ceiling.high or gap.high < 0 < ceiling.low
    return MetricStatistics(gap, gap, 0.5, ceiling, trap, known(explained), varies, 10)


def estimator(*, signal=0.5, gain=1.0, length=0.0):
    one = known(1.0)
    return EstimatorStatistics(1.0, 1.0, known(signal), one, one, known(gain), known(length), one)


PROMPTS = describe_prompts([[1, 0], [1, 1], [0, 0]], [[1, 1]] * 3, [[False, False]] * 3)
CLEAR = PolicyGradient(known(0.5))


def says(metrics=None, estimators=None, gradient=CLEAR):
    return {
        each.about + ": " + each.kind: each.says
        for each in conclude(PROMPTS, metrics or {}, gradient, estimators or {})
    }


def test_the_verdict_on_prompts():
    assert says()["prompts: counts"].startswith("1 of 3 prompts are worth training on")


def test_the_verdict_on_metrics():
    found = says(
        {
            "a": metric(known(0.2), known(0.3)),
            "b": metric(known(-0.2), known(0.0)),
            "c": metric(known(0), known(1), explained=0.0),
        }
    )
    assert "the higher half earns 0.200 (0.190 to 0.210) more" in found["metric a: matters"]
    assert "this sample shows no trap" in found["metric a: matters"]
    assert "the lower half earns 0.200 (0.190 to 0.210) more" in found["metric b: matters"]
    assert "a trap cannot be judged" in found["metric b: matters"]
    assert "acts like a random split" in found["metric c: does not matter"]
    assert "explains at most 1% of the variance" in found["metric c: does not matter"]
    found = says({"a": metric(known(0.2), known(0.3), explained=0.005), "random": metric(known(1), known(1))})
    assert "explains at most 2%" in found["metric a: does not matter"]
    vague = replace(metric(known(0.0, 0.5), known(0.0)), explained=known(0.0, 0.2))
    assert "the split may explain up to 20%" in says({"a": vague})["metric a: unknown"]
    assert not any("random:" in about for about in found)
    unknown = Estimate(0.5, float("nan"), float("nan"))
    assert "No verdict on a" in says({"a": metric(unknown, unknown)})["metric a: unknown"]
    assert "depends on the prompt" in says({"a": metric(known(0.2), known(0.3), varies=0.4)})["metric a: matters"]
    found = says({"a": metric(known(0.0), known(0.3), varies=0.4)})["metric a: depends on the prompt"]
    assert "which half earns more depends on the prompt" in found
    assert "the higher half is better by 0.300 (0.290 to 0.310) at its best responses" in found.lower()


def test_a_trap_speaks_against_inter_by_any_metric():
    found = says({"length": metric(known(-0.2), known(0.3)), "entropy": metric(known(0.2), known(0.3))})
    assert "the sign of a trap" in found["metric length: trap"]
    assert "Do not use canon inter, length" in found["metric length: trap"]
    assert "no trap" not in found["metric entropy: matters"]
    assert "Another metric shows a trap" in found["metric entropy: matters"]


def test_the_verdict_on_estimators():
    found = says(
        estimators={
            "dr_grpo": estimator(),
            "longer": estimator(length=0.1),
            "shorter": estimator(length=-0.1),
            "noise": estimator(signal=0.0),
            "wrong": estimator(gain=-1.0),
            "canon inter, random": estimator(signal=0.0),
        }
    )
    assert found["estimators: signal"].startswith("4 of 5 estimators have a signal")
    assert found["estimators: no signal"] == "Without a signal above noise: noise."
    assert found["estimators: direction"].endswith("in the first steps: wrong.")
    assert found["length: direction"] == (
        "First steps make responses longer with longer. First steps make responses shorter with shorter. None of the "
        "other 2 moves length beyond noise."
    )


def test_estimators_that_all_move_length_are_not_listed():
    found = says(estimators={"dr_grpo": estimator(length=0.1), "opo": estimator(length=0.2)})["length: direction"]
    assert found == "First steps make responses longer with every estimator that has a signal."
    found = says(estimators={"dr_grpo": estimator(), "opo": estimator()})["length: direction"]
    assert found == "No estimator that has a signal moves length beyond noise."


def test_without_a_policy_gradient_there_is_no_verdict_on_estimators():
    found = says(estimators={"dr_grpo": estimator(length=1.0)}, gradient=PolicyGradient(Estimate(0.1, -0.1, 0.3)))
    assert "No verdict on estimators or on length" in found["estimators: unknown"]
    assert not any(about.startswith("length") for about in found)


def test_signs_of_several_estimates_are_corrected():
    estimate = Estimate(2.5, 2.5 - 1.96, 2.5 + 1.96)  # two and a half standard errors above 0
    assert corrected_sign(estimate, 1, 0.95) == 1 and corrected_sign(estimate, 4, 0.95) == 1
    assert corrected_sign(estimate, 5, 0.95) == 0  # 0.05 / 5 needs 2.58 standard errors

"""Studies: named contrasts, learning rates chosen on other seeds, and a report that marks the rest as exploratory."""

import json
import time
from dataclasses import replace

import pytest
import yaml

from canon_trl.cli import compare
from canon_trl.comparing import executing, report
from canon_trl.comparing.comparison import Comparison
from canon_trl.comparing.contrasts import Contrast
from canon_trl.comparing.executing import collect, prepare, unfinished
from canon_trl.comparing.files import write_json
from canon_trl.comparing.performing import small

CONTRAST = {"task": "hint", "method": "intra", "minus": "dr_grpo", "prediction": "higher"}
STUDY = {
    "seeds": [1, 2, 3],
    "tuning_seeds": [11, 12],
    "learning_rates": [1e-4, 2e-4],
    "baseline": "dr_grpo",
    "primary": "training accuracy",
    "metrics": ["training accuracy", "accuracy"],
    "contrasts": [CONTRAST, {**CONTRAST, "task": "noise"}],
    "tasks": {"hint": {}, "noise": {"task": "arithmetic", "reward_flip": 0.35}},
    "methods": {
        "dr_grpo": {"advantage_estimator": "dr_grpo"},
        "intra": {"canon_mu": 0.0},
        "other": {"canon_mu": 0.5, "tasks": ["hint"]},
    },
    "evaluate": {"num_samples": 2},
}


def load(folder, **changes):
    places = {"output_dir": str(folder / "runs"), "results_dir": str(folder / "kept")}
    places["report_dir"] = str(folder / "report")
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | places | changes))
    return Comparison.load(path)


def finish(comparison, run, accuracy):
    evaluation = {"avg": accuracy, "length": 5.0, "entropy": 0.1, "num_prompts": 10, "num_samples": 2}
    numbers = {"training": {"accuracy": [accuracy] * 10}, "curve": [], "evaluation": evaluation}
    run.file.parent.mkdir(parents=True, exist_ok=True)
    run.file.write_text(json.dumps({"settings": comparison.settings_of(run)} | numbers))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"contrasts": [{**CONTRAST, "task": "hints"}]},
            r"contrasts: task='hints' \(did you mean 'hint'\?\) must be",
        ),
        (
            {"contrasts": [{**CONTRAST, "method": "inter"}]},
            r"contrasts: method='inter'.* must be a method",
        ),
        (
            {"contrasts": [{**CONTRAST, "task": "noise", "minus": "other"}]},
            "minus='other' must be a method",
        ),
        ({"contrasts": [{**CONTRAST, "prediction": "up"}]}, r"prediction='up' must be one of \['higher', 'lower'\]"),
        ({"contrasts": [{"task": "hint"}]}, "each needs exactly the keys"),
        ({"primary": None}, "primary is missing; contrasts and learning_rates need the name of a metric"),
        ({"primary": "speed"}, "primary has 'speed'"),
        ({"primary": "pass@k"}, r"primary has 'pass@k'; choose from .*'pass@k with a number k'"),
        ({"primary": "pass@8"}, "primary has 'pass@8', which needs its k in evaluate.pass_at_k"),
        ({"primary": "seconds"}, r"primary='seconds' must be an accuracy, one of \['accuracy', .*'pass@k"),
        ({"learning_rates": ["1e-4"]}, r"learning_rates has '1e-4'; write 1\.0e-4$"),
        ({"learning_rates": ["25e-6"]}, r"learning_rates has '25e-6'; write 2\.5e-5$"),
        ({"learning_rates": ["high"]}, "learning_rates has 'high'; all must be positive numbers"),
        ({"learning_rates": [0.0]}, r"learning_rates has 0\.0; all must be positive numbers"),
        ({"tuning_seeds": []}, "give both or none"),
        ({"tuning_seeds": [1, 9]}, r"tuning_seeds has \[1\], which are also in seeds; tune on other seeds"),
        ({"options": {"learning_rate": 1e-3}}, r"options has a learning_rate, but learning_rates=.* are tuned"),
        ({"runs_per_process": 0}, "runs_per_process=0 must be at least 1"),
    ],
)
def test_bad_studies(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **changes)


def test_the_learning_rate_is_the_best_on_the_tuning_seeds(tmp_path):
    study = load(tmp_path)
    assert len(study.tuning_runs()) == 5 * 2 * 2 and len(study.runs()) == 5 * 3
    assert len({run.file for run in study.tuning_runs() + study.runs()}) == 35
    assert {run.learning_rate for run in study.runs()} == {None}
    for run in study.tuning_runs():
        if run.method == "intra" and run.task == "hint":
            # seed 11 prefers the first rate a little, seed 12 the second one more
            finish(study, run, {11: {1e-4: 0.6, 2e-4: 0.5}, 12: {1e-4: 0.3, 2e-4: 0.7}}[run.seed][run.learning_rate])
            assert study.settings_of(run)["training"]["learning_rate"] == run.learning_rate
    chosen = {(run.task, run.method): run.learning_rate for run in study.runs()}
    assert chosen["hint", "intra"] == 2e-4 and chosen["hint", "dr_grpo"] is None and chosen["noise", "intra"] is None


def test_a_finished_study_reports_its_contrasts(tmp_path):
    study = load(tmp_path)
    for run in study.tuning_runs():
        finish(study, run, 0.5 + run.learning_rate)
    for run in study.runs():
        assert run.learning_rate == 2e-4
        # Intra is better on hint by 0.29, 0.30 and 0.31, and on noise by -0.1, 0 and 0.1
        gap = {"hint": 0.28 + run.seed / 100, "noise": (run.seed - 2) / 10}[run.task]
        finish(study, run, 0.4 + gap * (run.method == "intra"))
    assert unfinished(study) == []
    report.write(study, collect(study), command="COMMAND")
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    hint, noise = found["contrasts"]
    # standard deviation 0.01; t(1 - 0.05 / 4, 2) = 6.2053
    assert hint["difference"]["low"] == pytest.approx(0.3 - 6.2053 * 0.01 / 3**0.5, abs=1e-5)
    assert (hint["outcome"], noise["outcome"]) == ("as predicted", "not decided")
    # exploratory: t(0.975, 2) = 4.3027, without a correction
    exploratory = found["tasks"]["hint"]["methods"]["intra"]["training accuracy"]["difference"]
    assert exploratory["low"] == pytest.approx(0.3 - 4.3027 * 0.01 / 3**0.5, abs=1e-5)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| hint | intra - dr_grpo | higher | **+0.300 (+0.264 to +0.336)** | 3 | as predicted |" in text
    assert "these 2 contrasts in 95% of such experiments" in text and "they are exploratory" in text
    assert "| intra | 0.500 | **0.500** |" in text
    assert "Finished: 20 of 20 runs for tuning, 15 of 15 runs of the study." in text
    for name in ("final_accuracy", "training_accuracy_hint", "training_accuracy_noise"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert f"({name}.png)" in text
    against = Contrast.of(CONTRAST | {"prediction": "lower"})
    assert against.outcome(hint["difference"]) == "against the prediction"


def test_a_study_that_has_just_begun_has_a_report(tmp_path):
    study = load(tmp_path)
    for run in study.tuning_runs():
        finish(study, run, 0.5)
    finish(study, study.runs()[0], 0.4)
    report.write(study, collect(study), command="COMMAND")
    assert (
        "| hint | intra - dr_grpo | higher |  | 0 | not enough runs |" in (tmp_path / "report/report.md").read_text()
    )


def test_methods_without_a_learning_rate_are_named(tmp_path, capsys):
    study = load(
        tmp_path, methods={"dr_grpo": {}, "intra": {"canon_mu": 0.0}}, tasks={"hint": {}}, contrasts=[CONTRAST]
    )
    file = str(tmp_path / "study.yaml")
    compare.main([file, "--jobs", "0"])
    assert "hint dr_grpo: no learning rate, 4 of 4 tuning runs are not finished\n" in capsys.readouterr().out
    for run in study.tuning_runs():
        finish(study, run, 0.5)
        if run.method == "intra":  # a run that logs no batch
            run.file.write_text(run.file.read_text().replace(str([0.5] * 10), "[]"))
    for flags in (["--jobs", "0"], []):
        for run in study.runs():
            if run.method == "dr_grpo":
                finish(study, run, 0.5)
        with pytest.raises(SystemExit, match="no learning rate can be chosen for 1 of the methods above"):
            compare.main([file, *flags])
        output = capsys.readouterr().out
        assert "hint intra: no learning rate, 4 of 4 tuning runs have no training accuracy, such as " in output
        assert "dr_grpo: no" not in output


def test_results_to_commit_are_small_and_exact(tmp_path):
    run = {"settings": {"learning_rate": 1e-6}, "training": {"accuracy": [1 / 3]}, "curve": [], "evaluation": {}}
    kept = {"avg": 2 / 3, "pass_at_k": {}, "length": 5.0, "entropy": 0.1, "tokens_per_right_answer": None}
    run["evaluation"] = kept | {"num_prompts": 10, "num_samples": 2, "settings": {}, "avg_interval": {}}
    shortened = small(run)
    assert shortened["settings"] == run["settings"] and shortened["training"] == {"accuracy": [0.3333]}
    assert shortened["evaluation"] == kept | {"avg": 0.6667, "num_prompts": 10, "num_samples": 2}


@pytest.mark.parametrize("results_dir", [True, False])
def test_a_result_of_other_settings_is_named_by_its_file(tmp_path, results_dir):
    study = load(tmp_path) if results_dir else replace(load(tmp_path), results_dir=None)
    run = study.tuning_runs()[0]
    finish(study, run, 0.5)
    changed = replace(study, evaluate={"num_samples": 3})
    with pytest.raises(ValueError, match=r"was made with evaluate.num_samples=2, not 3; delete it or name") as error:
        unfinished(changed)
    assert str(error.value).startswith(f"{run.file} ")
    assert str(error.value).endswith("results_dir" if results_dir else "output_dir")


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_without_its_model_trains_again(tmp_path, kept):
    folder, settings = tmp_path / "run", {"training": {}, "evaluate": {"num_samples": 2}}
    prepare(folder, settings)
    write_json(folder / "curve.json", [])
    if kept:
        (folder / "model").mkdir()
    prepare(folder, settings | {"evaluate": {"num_samples": 3}})
    assert (folder / "curve.json").exists() == kept


def test_ctrl_c_starts_no_further_run(tmp_path, monkeypatch):
    comparison, started = load(tmp_path), []

    def interrupted(comparison, runs, threads):
        started.append(runs)
        if len(started) == 1:
            raise KeyboardInterrupt
        time.sleep(0.5)
        return []

    monkeypatch.setattr(executing, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        executing.execute_all(comparison, comparison.tuning_runs(), 1, 1)
    assert len(started) <= 2 < len(comparison.tuning_runs())

"""The benchmark that trains with every method: its runs, how it resumes and fails, and its page by hand."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import every_method  # noqa: E402
import every_method_report as report  # noqa: E402


def result(method, seed, accuracy, *, stage="advantage_estimator", updates=1, seconds=2.0, **options):
    options = {"advantage_estimator": "dr_grpo", stage: {method: {}}} | options
    return {
        "stage": stage,
        "method": method,
        "seed": seed,
        "updates": updates,
        "options": options,
        "accuracy": accuracy,
        "length": [10.0] * (len(accuracy) - 5) + [12.0] * 5,
        "entropy": [0.5] * (len(accuracy) - 5) + [0.25] * 5,
        "cpu_seconds_per_rollout": seconds,
        "versions": {"torch": "2.0"},
    }


def curve(first, end):
    return [first, first, end, end, end, end, end]


BASELINE = [result("dr_grpo", seed, curve(0.4, 0.8), stage="baseline") for seed in (1, 2, 3)]


def line(page, method):
    return next(line for line in page.splitlines() if line.startswith(f"| `{method}`"))


def page_of(*results):
    return report.write_report([*BASELINE, *results], stages=["advantage_estimator", "loss_term"])


class TestPage:
    def test_a_row_by_hand(self):
        # ends 0.7, 0.8, 0.9: mean 0.8, deviation 0.1, t(0.975, 2) = 4.303: 0.8 ± 4.303 * 0.1 / sqrt(3) = 0.8 ± 0.248
        runs = [result("opo", seed, curve(0.4, end), seconds=2.5) for seed, end in ((1, 0.7), (2, 0.8), (3, 0.9))]
        cells = line(page_of(*runs), "opo").strip("| ").split(" | ")
        assert cells == ["`opo`", "3", "0.800 ± 0.248", "+0.000 ± 0.248", "0.250", "12.0", "1.25", "yes"]

    def test_step_times_are_relative_to_the_mean_of_both_runs_of_dr_grpo(self):
        repeated = [result("dr_grpo", seed, curve(0.4, 0.8), seconds=3.0) for seed in (1, 2, 3)]
        run = [result("opo", seed, curve(0.4, 0.8), seconds=2.5) for seed in (1, 2, 3)]
        page = page_of(*repeated, *run)
        assert line(page, "opo").endswith("| 1.00 | yes |") and line(page, "dr_grpo").endswith("| 1.20 | yes |")
        assert "two equal runs differ by up to 50%" in page

    def test_the_last_five_rollouts_count(self):
        run = result("opo", 1, [0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6])
        assert report.accuracy_at_end(run) == pytest.approx(0.4)
        assert report.gain(run) == pytest.approx(0.3)

    @pytest.mark.parametrize(
        ("ends", "verdict"),
        [
            ((0.61, 0.61, 0.61), "yes"),  # Dr.GRPO gains 0.4, and half of it is 0.2
            ((0.49, 0.50, 0.51), "slowly"),
            ((0.30, 0.40, 0.70), "no"),  # gains of -0.1, 0 and 0.3: the interval contains 0
            ((0.20, 0.21, 0.22), "no"),
        ],
    )
    def test_whether_it_learns(self, ends, verdict):
        runs = {seed: result("opo", seed, curve(0.4, end)) for seed, end in enumerate(ends, start=1)}
        assert report.learns(runs, {run["seed"]: run for run in BASELINE}) == verdict

    def test_several_updates_are_compared_with_their_own_baseline(self):
        strong = [result("dr_grpo_4_updates", seed, curve(0.4, 0.9), stage="baseline", updates=4) for seed in (1, 2)]
        run = [result("ter", seed, curve(0.4, 0.8), stage="loss_term", updates=4) for seed in (1, 2)]
        found = line(page_of(*strong, *run), "ter")
        assert found.startswith("| `ter`, 4 updates | 2 | 0.800 | -0.100 |")

    def test_a_method_that_does_not_learn_is_explained(self, monkeypatch):
        runs = [result("opo", seed, curve(0.4, 0.3)) for seed in (1, 2, 3)]
        assert "- `opo`: NOT EXPLAINED YET." in page_of(*runs)
        monkeypatch.setitem(report.REMARKS, "opo", "It is quick.")
        assert "It is quick." not in page_of(*runs)
        assert "- `opo`: It is quick." in page_of(*(result("opo", seed, curve(0.4, 0.8)) for seed in (1, 2, 3)))
        monkeypatch.setitem(report.EXPLANATIONS, "opo", "Its sign is as published.")
        assert "- `opo`: Its sign is as published." in page_of(*runs)

    def test_styles_by_hand(self):
        runs = [result("opo", seed, curve(0.4, 0.8)) for seed in (1, 2)]
        runs[0]["styles"] = {"short": {"share": [0.5, 0.0], "accuracy": [0.2, None]}}
        runs[1]["styles"] = {"short": {"share": [0.7, 0.2], "accuracy": [0.4, 0.9]}}
        for run, end in zip(runs, (-1.0, -2.0), strict=True):
            run["logged"] = {"rewards/opo/mean": {"first": -3.0, "last": end}}
        assert "| `opo` | -3.00 → -1.50 | 0.60 (0.30) → 0.10 (0.90) |" in page_of(*runs).splitlines()

    def test_an_explanation_quotes_the_held_out_accuracy(self):
        runs = {1: {"held_out_accuracy_at_temperature_1": 0.75}, 2: {"held_out_accuracy_at_temperature_1": 0.85}}
        # t(0.975, 1) = 12.706: 0.8 ± 12.706 * 0.0707 / sqrt(2)
        assert "right on 0.800 ± 0.635 of" in report.explanation("e3_temperature", runs)

    def test_options_are_shown(self):
        run = result("opo", 1, curve(0.4, 0.8)) | {
            "options": {"advantage_estimator": {"opo": {"k": 4}}, "beta": 0.01},
        }
        assert line(page_of(run), "opo").startswith("| `opo` (k 4, beta of TRL 0.01) |")

    def test_nothing_to_compare_with(self):
        with pytest.raises(ValueError, match=r"no run of Dr\.GRPO"):
            report.write_report([result("opo", 1, curve(0.4, 0.8))], stages=["advantage_estimator"])

    def test_the_published_page_is_that_of_the_results_and_explains_every_method(self):
        finished = every_method.finished(every_method.runs_of(), every_method.RESULTS)
        page = report.write_report(finished, stages=[stage.field for stage in every_method.STAGES])
        assert every_method.PAGE.read_text() == page
        assert "NOT EXPLAINED" not in page

    def test_all_runs_of_a_seed_start_with_the_same_rollout_and_dr_grpo_equals_its_baseline(self):
        runs = report.by_method(every_method.finished(every_method.runs_of(), every_method.RESULTS))
        baseline = runs["baseline", "dr_grpo"]
        for (stage, method), seeds in runs.items():
            for seed, run in seeds.items():
                assert run["accuracy"][0] == baseline[seed]["accuracy"][0], (stage, method, seed)
        for seed, run in runs["advantage_estimator", "dr_grpo"].items():
            assert run["accuracy"] == baseline[seed]["accuracy"]


class TestRuns:
    def test_every_method_of_every_stage_has_a_run_per_seed(self):
        found = {(run.stage, run.method, run.seed) for run in every_method.runs_of() if run.stage != "baseline"}
        wanted = {(stage.field, name) for stage in every_method.STAGES for name in stage.methods}
        assert found == {(*each, seed) for each in wanted for seed in every_method.SEEDS}

    def test_the_tables_name_only_methods_that_exist(self):
        names = {name for stage in every_method.STAGES for name in stage.methods}
        texts = (report.EXPLANATIONS, report.REMARKS)
        tables = (every_method.OPTIONS, every_method.CONFIG, every_method.UPDATES, *texts)
        assert set().union(*tables) <= names

    def test_a_method_that_acts_on_change_has_several_updates(self):
        updates = {run.method: run.updates for run in every_method.runs_of()}
        assert {updates[name] for name in ("kl_cov", "dppo", "up", "clip_cov", "disco", "adaptive_clip")} == {4}
        assert updates["ter"] == updates["dr_grpo"] == 1

    def test_a_later_start_does_what_is_missing(self, tmp_path):
        runs, done = every_method.runs_of()[:3], []

        def training(run):
            done.append(run.name)
            return every_method.settings_of(run) | {"accuracy": [0.5]}

        assert every_method.perform(runs[:2], tmp_path, 1, training) == []
        assert every_method.perform(runs, tmp_path, 1, training) == []
        assert done == [run.name for run in runs]
        assert len(every_method.finished(runs, tmp_path)) == 3

    def test_a_result_made_with_other_settings_is_an_error(self, tmp_path):
        (run,) = every_method.runs_of()[:1]
        changed = every_method.settings_of(run) | {"options": run.options | {"learning_rate": 1.0}}
        every_method.write_result(run.file(tmp_path), changed)
        with pytest.raises(ValueError, match=f"{run.file(tmp_path)} was made with other settings"):
            every_method.missing([run], tmp_path)

    def test_a_run_that_fails_is_named_and_stops_no_other(self, tmp_path, capsys):
        runs = every_method.runs_of()[:3]

        def training(run):
            if run is runs[1]:
                raise ValueError("it broke")
            return every_method.settings_of(run)

        assert every_method.perform(runs, tmp_path, 1, training) == [f"{runs[1].name}: ValueError: it broke"]
        assert f"{runs[1].name}: FAILED" in capsys.readouterr().out
        assert [run.file(tmp_path).exists() for run in runs] == [True, False, True]

    def test_a_missing_option_fails_loudly(self, tmp_path, monkeypatch):
        monkeypatch.delitem(every_method.OPTIONS, "pass_at_k")
        (run,) = (run for run in every_method.runs_of() if run.method == "pass_at_k" and run.seed == 1)
        (failed,) = every_method.perform([run], tmp_path, 1)
        assert "'pass_at_k'" in failed and "k" in failed

    def test_only_some_methods(self):
        runs = every_method.chosen(every_method.runs_of(), ["ter"])
        assert {(run.stage, run.method) for run in runs if run.stage != "baseline"} == {("loss_term", "ter")}
        assert {run.method for run in runs if run.stage == "baseline"} == {*report.BASELINES.values()}
        with pytest.raises(ValueError, match=r"--methods has \['tre'\]"):
            every_method.chosen(every_method.runs_of(), ["tre"])


def test_shares_by_hand():
    rollouts = [[("short", 1.0), ("long", 0.0)], [("short", 0.0), (None, 0.0), ("long", 1.0), ("long", 0.0)]]
    assert every_method.shares_of("short", rollouts) == {"share": [0.5, 0.3333], "accuracy": [1.0, 0.5]}
    assert every_method.shares_of("wide", rollouts) == {"share": [0.0, 0.0], "accuracy": [None, None]}


def test_a_real_run(tmp_path):
    small = {"per_device_train_batch_size": 16, "max_completion_length": 12}
    (run,) = (run for run in every_method.runs_of(rollouts=2) if run.method == "kl_cov" and run.seed == 1)
    run.options.update(small)
    assert every_method.perform([run], tmp_path, 1) == []
    found = json.loads(run.file(tmp_path).read_text())
    assert len(found["accuracy"]) == len(found["length"]) == len(found["entropy"]) == 2
    assert found["logged"]["policy_loss/frac_gated"]["mean"] > 0
    assert found["cpu_seconds_per_rollout"] > 0

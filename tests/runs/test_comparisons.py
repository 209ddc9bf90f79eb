"""Comparing methods: the statistics by hand, and the harness on runs of two steps."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats

from canon_trl.evaluation import paired_difference

ROOT = Path(__file__).parents[2]
COMPARISONS = sorted((ROOT / "benchmarks" / "comparisons").glob("*.yaml"))
PUBLISHED = [path.parent for path in sorted((ROOT / "docs" / "comparisons").glob("*/report.json"))]
sys.path.insert(0, str(ROOT / "benchmarks"))

import compare  # noqa: E402
import compare_report  # noqa: E402


class TestPairedDifference:
    def test_by_hand(self):
        # differences 1, 2, 3: mean 2, standard deviation 1; the quantile p of t with 2 degrees of freedom is
        # (2p - 1) / sqrt(2 p (1 - p)), at p = 0.975 about 4.303
        found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
        half = 0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)
        assert (found.mean, found.pairs) == (2.0, 3)
        assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-12)
        assert found.is_noise

    def test_more_comparisons_make_it_wider(self):
        # t(1 - 0.05 / 20, 2) = 14.089
        found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], comparisons=10)
        assert found.high - found.mean == pytest.approx(14.0890 / math.sqrt(3), rel=1e-4)

    @pytest.mark.parametrize(
        ("values", "baseline"),
        [
            ([0.51, 0.51], [0.50, 0.50]),
            ([0.7, 0.4, 0.9], [0.6, 0.3, 0.8]),  # 0.1 each, but for the rounding of floats
            ([0.25] * 20, [0.5] * 20),
            ([0.5] * 5, [0.5] * 5),
        ],
    )
    def test_the_same_difference_in_every_pair_says_nothing_about_spread(self, values, baseline):
        found = paired_difference(values, baseline)
        assert found.mean == pytest.approx(values[0] - baseline[0])
        assert math.isnan(found.low) and math.isnan(found.high)
        assert found.is_noise and found.pairs == len(values)

    def test_one_pair_says_nothing_about_spread(self):
        found = paired_difference([2.0], [1.0])
        assert found.mean == 1.0
        assert math.isnan(found.low) and math.isnan(found.high)
        assert found.is_noise

    @given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=3, max_size=8))
    def test_it_is_scipys_interval_of_a_paired_test(self, pairs):
        values, baseline = zip(*pairs, strict=True)
        differences = [a - b for a, b in pairs]
        if max(differences) - min(differences) < 1e-11:  # as good as the same
            return
        found = paired_difference(values, baseline, level=0.9)
        wanted = stats.ttest_rel(values, baseline).confidence_interval(0.9)
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-6, abs=1e-9)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"values": [1.0]}, r"values \(1,\) and baseline \(2,\) must be lists of one length"),
            ({"values": [], "baseline": []}, "must be lists of one length, not 0"),
            ({"comparisons": 0}, "comparisons=0 must be at least 1"),
            ({"level": 1.0}, "level=1.0 must lie between 0 and 1"),
        ],
    )
    def test_what_is_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            paired_difference(**({"values": [1.0, 2.0], "baseline": [0.0, 1.0]} | options))


def result(method, seed, accuracy, length, task="arithmetic"):
    curve = [
        {"step": step, "accuracy": height, "length": length, "entropy": 0.5 - step / 100, "seconds": float(step)}
        for step, height in ((0, 0.2), (10, 0.4), (30, accuracy))
    ]
    passes = {"1": {"mean": accuracy}, "8": {"mean": 1.0}}
    evaluation = {"avg": accuracy, "length": length, "pass_at_k": passes, "entropy": 0.2}
    known = {"task": task, "method": method, "seed": seed, "seconds_before": 0.0}
    return known | {"curve": curve, "evaluation": evaluation | {"tokens_per_right_answer": length / accuracy}}


class TestReport:
    RESULTS = [
        result("base", 1, 0.5, 10.0),
        result("base", 2, 0.7, 10.0),
        result("other", 1, 0.6, 5.0),
        result("other", 2, 0.8, 7.0),
        result("other", 3, 0.9, 7.0),  # has no partner
    ]

    def test_means_and_paired_differences(self):
        summary = compare_report.summarise(self.RESULTS, ["accuracy", "length (tokens)", "pass@8"], {"other": "base"})
        found = summary["arithmetic"]
        assert found["comparisons"] == 3
        other = found["methods"]["other"]
        assert other["accuracy"]["mean"] == pytest.approx((0.6 + 0.8 + 0.9) / 3)
        assert other["accuracy"]["sd"] == pytest.approx(0.152753, abs=1e-6)
        assert other["accuracy"]["difference"]["mean"] == pytest.approx(0.1)
        assert other["accuracy"]["difference"]["pairs"] == 2
        # differences -5 and -3: mean -4, sd sqrt(2); t(1 - 0.05 / 6, 1) = 38.188
        difference = other["length (tokens)"]["difference"]
        assert difference["mean"] == -4
        assert difference["high"] == pytest.approx(-4 + 38.1885, abs=1e-3)
        assert difference["is_noise"]
        assert "difference" not in found["methods"]["base"]["accuracy"]

    def test_mean_on_the_way_by_hand(self):
        # trapezoids: 10 steps at 0.3 and 20 at 0.5, over 30 steps
        assert compare_report.mean_on_the_way(self.RESULTS[2]["curve"]) == pytest.approx((3 + 10) / 30)

    def test_the_front_is_of_those_that_nothing_beats(self):
        assert compare_report.dominates((5, 0.9), (5, 0.8))
        assert compare_report.dominates((4, 0.8), (5, 0.8))
        assert not compare_report.dominates((4, 0.7), (5, 0.8))
        assert not compare_report.dominates((5, 0.8), (5, 0.8))

    def test_files(self, tmp_path):
        compare_report.write_report(
            tmp_path, self.RESULTS, metrics=["accuracy", "seconds"], baselines={"other": "base"}, command="COMMAND"
        )
        text = (tmp_path / "report.md").read_text()
        assert "| base |  | 0.600 ± 0.141 |  | 30 ± 0 |  |" in text
        assert "Made by `COMMAND`" in text
        assert "2 to 3 seeds" in text
        for name in compare_report.PICTURES:
            assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
            assert f"({name}.png)" in text

    @pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
    def test_what_is_published_is_of_five_seeds_and_of_its_numbers(self, folder):
        summary = json.loads((folder / "report.json").read_text())
        metrics = yaml.safe_load((ROOT / f"benchmarks/comparisons/{folder.name}.yaml").read_text())["metrics"]
        assert compare_report.table(summary, metrics) in (folder / "report.md").read_text()
        for found in summary.values():
            assert all(len(row["seeds"]) >= 5 for row in found["methods"].values())

    def test_a_run_without_a_right_answer_hides_no_other(self, tmp_path):
        """It has no tokens per right answer, and its entropy is gone from the first evaluation on."""
        collapsed = result("collapsed", 2, 0.5, 1.0)
        collapsed["evaluation"] |= {"tokens_per_right_answer": None, "avg": 0.0}
        for point in collapsed["curve"]:
            point |= {"accuracy": 0.0, "entropy": 0.0}
        collapsed["curve"].pop()  # it had ended by then
        dead = [json.loads(json.dumps(collapsed | {"method": "dead", "seed": seed})) for seed in (1, 2)]
        results = [*self.RESULTS, result("collapsed", 1, 0.5, 20.0), collapsed, *dead]
        metrics, baselines = ["accuracy", "tokens per right answer"], {"other": "base", "collapsed": "base"}
        compare_report.write_report(tmp_path, results, metrics=metrics, baselines=baselines, command="COMMAND")
        figure = Figure()
        compare_report.draw_learning_curves(figure.subplots(), compare_report.by_method(results, "arithmetic"))
        lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
        assert lines["collapsed (2)"] == [[0, 0.1], [10, 0.2]] and len(lines["base (2)"]) == 3
        methods = json.loads((tmp_path / "report.json").read_text())["arithmetic"]["methods"]
        assert methods["collapsed"]["tokens per right answer"] == {"mean": 40.0, "sd": None, "values": [40.0, None]}
        assert methods["collapsed"]["accuracy"]["mean"] == 0.25
        assert methods["dead"]["tokens per right answer"] == {"mean": None, "sd": None, "values": [None, None]}
        text = (tmp_path / "report.md").read_text()
        rows = {line.split(" | ")[0][2:]: line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
        assert rows["collapsed"][4:] == ["40.0 (1 of 2 runs)", " |"]
        assert rows["dead"][4:] == ["none", " |"]
        # 10 / 0.5 and 10 / 0.7 tokens, and 5 / 0.6 and 7 / 0.8 and 7 / 0.9
        assert rows["base"][4] == "17.1 ± 4.0" and rows["other"][4] == "8.3 ± 0.5"
        assert "the mean is that of the others, which are counted, and there is no difference" in text
        pictures = {path.stem for path in tmp_path.glob("*.png")}
        assert pictures == compare_report.PICTURES.keys() - {compare_report.TIMED}

    def test_differences_without_an_interval(self, tmp_path):
        """One pair, or the same difference in all: in brackets, and null in JSON."""
        results = [
            result(method, seed, accuracy, 9.0) for seed in (1, 2) for method, accuracy in (("a", 0.5), ("b", 0.75))
        ]
        results.append(result("c", 1, 0.25, 9.0))
        baselines = {"b": "a", "c": "a"}
        compare_report.write_report(tmp_path, results, metrics=["accuracy"], baselines=baselines, command="COMMAND")
        text = (tmp_path / "report.md").read_text()
        assert "| b | a | 0.750 ± 0.000 | [+0.250] |" in text and "| c | a | 0.250 | [-0.250] |" in text
        assert "Differences without an interval are of one pair, or the same in all pairs" in text
        methods = json.loads((tmp_path / "report.json").read_text())["arithmetic"]["methods"]
        wanted = {"mean": 0.25, "low": None, "high": None, "pairs": 2, "is_noise": True}
        assert methods["b"]["accuracy"]["difference"] == wanted

    def test_an_unknown_metric_is_refused(self):
        with pytest.raises(ValueError, match="metrics has 'acuracy'; choose from"):
            compare_report.metric("acuracy")


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_every_comparison_parses_down_to_the_options_of_its_runs(path, tmp_path):
    import evaluate
    import recipe
    from train_astar_po import ValueData

    from canon_trl import AStarPOConfig, CANONConfig

    comparison = compare.Comparison.load(path)
    (tmp_path / "model").mkdir()  # a run's, when it is evaluated
    assert len(comparison.seeds) >= 5
    assert {run.seed for run in comparison.runs()} == set(comparison.seeds)
    for run in comparison.runs():
        if run.seed != comparison.seeds[0]:
            continue
        settings = comparison.settings_of(run)
        kinds = {"train_canon": (CANONConfig,), "train_astar_po": (ValueData, AStarPOConfig)}[settings["script"]]
        # what this machine lacks is refused before anything else
        absent = {"use_cpu": True, "bf16": False, "output_dir": str(tmp_path)}
        config = compare.write_yaml(tmp_path / "options.yaml", settings["training"] | absent)
        recipe.parse(["--config", str(config)], *kinds, embedded=config)
        (tmp_path / "model").mkdir(exist_ok=True)
        options = compare.evaluation_options(settings, model=tmp_path / "model", folder=tmp_path / "evaluation")
        config = compare.write_yaml(tmp_path / "evaluation.yaml", options)
        (benchmark,), _, _ = evaluate.read_benchmarks(["--config", str(config)])
        wanted = {int(name.removeprefix("pass@")) for name in comparison.metrics if name.startswith("pass@")}
        assert wanted <= set(benchmark.options.pass_ks)


def write_comparison(folder, **changes):
    options = {
        "max_steps": 2,
        "per_device_train_batch_size": 32,
        "max_completion_length": 10,
        "task_train_prompts": 64,
        "task_eval_prompts": 8,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "num_generations_eval": 1,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    content = {
        "output_dir": str(folder / "runs"),
        "seeds": [1, 2],
        "baseline": "dr_grpo",
        "metrics": ["accuracy", "pass@2"],
        "options": options,
        "tasks": {"arithmetic": {}},
        "methods": {
            "dr_grpo": {"advantage_estimator": "dr_grpo"},
            "astar, po": {"script": "train_astar_po", "beta1": 0.5, "per_device_train_batch_size": 8},
        },
        "values": {"num_samples": 2, "beta1": 0.5},
        "evaluate": {"num_samples": 2, "pass_at_k": [1, 2]},
        "keep_models": False,
    }
    path = folder / "comparison.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def harness(path, *flags):
    command = [sys.executable, str(ROOT / "benchmarks" / "compare.py"), str(path), *flags]
    return subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_values_and_evaluations_read_the_prompts_of_training(tmp_path, monkeypatch):
    """The options that word a prompt, and for values those of the sampler, unless the file says otherwise."""
    training = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": 0.7, "top_p": 0.9, "max_steps": 2}
    values = {"num_samples": 2, "top_p": 1.0}
    comparison = compare.Comparison.load(write_comparison(tmp_path, options=training, values=values))
    monkeypatch.setattr(compare, "start", lambda *arguments, **streams: True)
    compare.sample_values(comparison, "arithmetic", 1)
    written = yaml.safe_load((comparison.values_of("arithmetic") / "options.yaml").read_text())
    assert written == values | {
        "task": "arithmetic",
        "chat_template_kwargs": {"enable_thinking": False},
        "temperature": 0.7,
        "output_dir": str(comparison.values_of("arithmetic")),
    }
    settings = comparison.settings_of(comparison.runs()[0])
    options = compare.evaluation_options(settings, model=tmp_path / "model", folder=tmp_path / "evaluation")
    assert options["chat_template_kwargs"] == {"enable_thinking": False} and "temperature" not in options


def test_no_option_of_the_data_or_its_rewards_is_lost_between_training_and_evaluation():
    """What recipes and sampling have in common with training, but for the policy that is sampled from."""
    import recipe
    from sampling import SamplingArguments

    from canon_trl import CANONConfig

    sampling, training = ({each.name for each in fields(kind)} for kind in (SamplingArguments, CANONConfig))
    of_training = {"dataset_streaming", "dataset_train_split", "ignore_bias_buffers", "task_train_prompts"}
    of_the_policy = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "use_vllm", "seed"}
    shared = {each.name for each in fields(recipe.RecipeArguments)} - of_training | sampling & training - of_the_policy
    assert shared == {*compare.OF_THE_DATA}


class TestHarness:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        """A comparison that was killed when its first result was there, and then finished."""
        folder = tmp_path_factory.mktemp("comparison")
        path = write_comparison(folder)
        killed = harness(path, "--jobs", "2")
        deadline = time.monotonic() + 600
        while not (first := list(folder.glob("runs/runs/**/result.json"))):
            assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()[0]
            time.sleep(0.2)
        os.kill(killed.pid, signal.SIGKILL)  # not the run that it had started, for which the next one waits
        killed.wait()
        assert len(first) < 4
        kept = {path: path.stat().st_mtime_ns for path in first}
        finished = harness(path, "--jobs", "2")
        output, _ = finished.communicate(timeout=800)
        assert finished.returncode == 0, output
        assert 0 < int(re.search(r"(\d) of 4 runs to do", output)[1]) <= 4 - len(first)
        assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
        return folder

    def test_every_run_has_a_result_with_its_settings(self, folder):
        results = {
            path.parent.relative_to(folder / "runs/runs"): path for path in folder.glob("runs/runs/**/result.json")
        }
        names = {f"arithmetic/{method}/{seed}" for method in ("dr_grpo", "astar_po") for seed in (1, 2)}
        assert {str(name) for name in results} == names
        for name, path in results.items():
            found = json.loads(path.read_text())
            assert found["settings"]["training"]["seed"] == int(name.name)
            assert [point["step"] for point in found["curve"]] == [0, 1, 2]
            assert found["curve"][-1]["seconds"] > 0
            assert found["evaluation"]["num_prompts"] == 8
            assert not (path.parent / "model").exists()

    def test_a_run_is_what_its_command_gives(self, folder):
        """The options beside a run are the training script's."""
        import train_canon

        run = folder / "runs/runs/arithmetic/dr_grpo/1"
        config = yaml.safe_load((run / "options.yaml").read_text()) | {"output_dir": str(folder / "again")}
        again = compare.write_yaml(folder / "again.yaml", config)
        history = train_canon.main(["--config", str(again)]).state.log_history
        points = [point["accuracy"] for point in json.loads((run / "result.json").read_text())["curve"]]
        assert [e["eval_rewards/accuracy/mean"] for e in history if "eval_reward" in e] == points

    def test_the_report(self, folder):
        summary = json.loads((folder / "runs/report/report.json").read_text())
        methods = summary["arithmetic"]["methods"]
        assert methods["astar, po"]["seeds"] == [1, 2]
        found = json.loads((folder / "runs/runs/arithmetic/astar_po/2/result.json").read_text())
        assert methods["astar, po"]["accuracy"]["values"][1] == found["evaluation"]["avg"]
        # stage 1 is part of what A*-PO costs
        times = compare_report.METRICS["seconds"][0]
        collected = compare.collect(compare.Comparison.load(folder / "comparison.yaml"))
        (one,) = [run for run in collected if (run["method"], run["seed"]) == ("astar, po", 2)]
        stage1 = json.loads((folder / "runs/values/arithmetic/seconds.json").read_text())
        assert times(one) == pytest.approx(found["curve"][-1]["seconds"] + stage1)

    def test_results_of_other_settings_are_refused(self, folder):
        changed = yaml.safe_load((folder / "comparison.yaml").read_text())
        changed["options"]["max_steps"] = 3
        (folder / "changed.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(ValueError, match=r"was made with training.max_steps=2, not 3; delete it or name"):
            compare.unfinished(compare.Comparison.load(folder / "changed.yaml"))

    def test_a_run_that_fails_is_named_and_the_others_go_on(self, tmp_path):
        methods = {
            "dr_grpo": {"advantage_estimator": "dr_grpo"},
            "broken": {"advantage_estimator": "no_such_estimator"},
        }
        process = harness(write_comparison(tmp_path, methods=methods, seeds=[1]), "--jobs", "2")
        output, _ = process.communicate(timeout=800)
        assert process.returncode != 0
        assert "broken seed 1: FAILED" in output and "1 runs failed" in output
        log = tmp_path / "runs/runs/arithmetic/broken/1/log.txt"
        assert "no_such_estimator" in log.read_text()
        assert "| dr_grpo |" in (tmp_path / "runs/report/report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "grpo"}, "baseline='grpo' must be one of the methods"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] must be different numbers"),
        ({"metrics": ["speed"]}, "metrics has 'speed'"),
        ({"metrics": ["pass@64"]}, "metrics has 'pass@64', which is not in evaluate.pass_at_k, so no run would have"),
        ({"sedes": [1]}, r"has \['sedes'\]; it may have"),
        ({"methods": {"dr_grpo": {"script": "train"}}}, "methods.dr_grpo.script='train' must be one of"),
        ({"methods": {"dr_grpo": {}, "dr, grpo": {}, "dr grpo": {}}}, "would share the folder 'dr_grpo'"),
        ({"methods": {"dr_grpo": {"baseline": "grpo"}}}, "methods.dr_grpo.baseline='grpo' must be one of"),
        (
            {"methods": {"dr_grpo": {}, "astar": {"script": "train_astar_po", "temperature": 0.5, "top_k": 9}}},
            r"methods.astar has \['temperature', 'top_k'\], but its values are sampled once for all methods",
        ),
        ({"methods": {"dr_grpo": {"tasks": ["maths"]}}}, r"methods.dr_grpo.tasks has \['maths'\]"),
    ],
)
def test_what_a_comparison_must_not_say(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        compare.Comparison.load(write_comparison(tmp_path, **changes))

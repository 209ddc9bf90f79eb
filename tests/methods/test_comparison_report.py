"""Comparisons of methods: statistics by hand, and the report on results."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats

from canon_trl.comparing import charts, pictures, report
from canon_trl.comparing.comparison import Comparison
from canon_trl.comparing.executing import collect, unfinished
from canon_trl.comparing.metrics import mean_on_the_way, metric, resolution, value_of
from canon_trl.comparing.panels import BASELINE
from canon_trl.comparing.predictions import outcome
from canon_trl.comparing.study import contrasts_table, study_text, summarise_study
from canon_trl.comparing.summary import by_method, summarise
from canon_trl.comparing.tables import predictions_table, table
from canon_trl.evaluation import paired_difference

ROOT = Path(__file__).parents[2]
COMMITTED = [
    path
    for path in sorted((ROOT / "benchmarks" / "comparisons").glob("*.yaml"))
    if (ROOT / "benchmarks" / "results" / path.stem / "runs").exists()
    and (ROOT / "docs" / "comparisons" / path.stem / "report.json").exists()
]
PUBLISHED = [path.parent for path in sorted((ROOT / "docs" / "comparisons").glob("*/report.json"))]


class TestPairedDifference:
    def test_by_hand(self):
        # differences 1, 2, 3: mean 2, standard deviation 1; the quantile p of t with 2 degrees of freedom is
        # (2p - 1) / sqrt(2 p (1 - p)), at p = 0.975 about 4.303
        found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
        half = 0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)
        assert (found.mean, found.pairs) == (2.0, 3)
        assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-12)
        assert found.is_noise

    def test_more_comparisons_widen_the_interval(self):
        # t(1 - 0.05 / 20, 2) = 14.089
        found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], comparisons=10)
        assert found.high - found.mean == pytest.approx(14.0890 / math.sqrt(3), rel=1e-4)

    @pytest.mark.parametrize(
        ("values", "baseline"),
        [
            ([0.51, 0.51], [0.50, 0.50]),
            ([0.7, 0.4, 0.9], [0.6, 0.3, 0.8]),  # 0.1 each, up to rounding
            ([0.25] * 20, [0.5] * 20),
            ([0.5] * 5, [0.5] * 5),
        ],
    )
    def test_equal_differences_give_no_interval(self, values, baseline):
        found = paired_difference(values, baseline)
        assert found.mean == pytest.approx(values[0] - baseline[0])
        assert math.isnan(found.low) and math.isnan(found.high)
        assert found.is_noise and found.pairs == len(values)

    def test_differences_within_one_step_of_a_discrete_measure_give_no_interval(self):
        values, baseline = [0.75, 0.76, 0.75], [0.5, 0.5, 0.5]  # shares of 100 responses
        found = paired_difference(values, baseline, resolution=0.01)
        assert math.isnan(found.low) and found.is_noise and found.mean == pytest.approx(0.76 / 3)
        assert not paired_difference(values, baseline, resolution=0.009).is_noise
        assert not paired_difference([0.75, 0.77, 0.75], baseline, resolution=0.01).is_noise

    def test_one_pair_gives_no_interval(self):
        found = paired_difference([2.0], [1.0])
        assert found.mean == 1.0
        assert math.isnan(found.low) and math.isnan(found.high)
        assert found.is_noise

    @given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=3, max_size=8))
    def test_interval_matches_scipys_paired_test(self, pairs):
        values, baseline = zip(*pairs, strict=True)
        differences = [a - b for a, b in pairs]
        if max(differences) - min(differences) < 1e-11:  # practically equal
            return
        found = paired_difference(values, baseline, level=0.9)
        wanted = stats.ttest_rel(values, baseline).confidence_interval(0.9)
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-6, abs=1e-9)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"values": [1.0]}, r"values \(1,\) and baseline \(2,\) must be lists of one length"),
            ({"values": [], "baseline": []}, "must be lists of one length, at least 1"),
            ({"comparisons": 0}, "comparisons=0 must be at least 1"),
            ({"level": 1.0}, "level=1.0 must lie between 0 and 1"),
            ({"resolution": -0.1}, "resolution=-0.1 must be at least 0"),
        ],
    )
    def test_bad_arguments(self, options, message):
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
    known["training"] = {"accuracy": [accuracy - 0.2, accuracy - 0.1], "length": [9.0, 9.0], "entropy": [0.5, 0.4]}
    return known | {"curve": curve, "evaluation": evaluation | {"tokens_per_right_answer": length / accuracy}}


def write(folder, results, metrics, baselines, **changes):
    """Write the report of a comparison with these results."""
    methods = {each["method"]: {"baseline": baselines.get(each["method"], each["method"])} for each in results}
    given = {"seeds": [1], "tasks": {"arithmetic": {}}, "evaluate": {"pass_at_k": [1, 8]}, "metrics": metrics}
    given |= {"output_dir": folder, "report_dir": folder, "methods": methods, "baseline": next(iter(methods))}
    report.write(Comparison(**given, **changes), results, command="COMMAND")


class TestReport:
    RESULTS = [
        result("base", 1, 0.5, 10.0),
        result("base", 2, 0.7, 10.0),
        result("other", 1, 0.6, 5.0),
        result("other", 2, 0.8, 7.0),
        result("other", 3, 0.9, 7.0),  # has no pair
    ]

    def test_means_and_paired_differences(self):
        summary = summarise(self.RESULTS, ["accuracy", "length (tokens)", "pass@8"], {"other": "base"})
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

    def test_mean_accuracy_over_training_by_hand(self):
        # trapezoids: 10 steps at 0.3 and 20 at 0.5, divided by 30 steps
        assert mean_on_the_way(self.RESULTS[2]["curve"]) == pytest.approx((3 + 10) / 30)

    def test_mean_accuracy_of_the_training_batches(self):
        read, _ = metric("training accuracy")
        assert read(self.RESULTS[2]) == pytest.approx(0.6 - 0.15)
        assert value_of("training accuracy", {"training": {"accuracy": []}}) is None

    def test_one_response_is_the_resolution_of_an_accuracy(self):
        run = result("base", 1, 0.5, 10.0)
        assert resolution("accuracy", run) == 0
        run["evaluation"] |= {"num_prompts": 100, "num_samples": 4}
        assert resolution("accuracy", run) == 1 / 400
        assert resolution("length (tokens)", run) == 0

    def test_dominance(self):
        assert charts.dominates((5, 0.9), (5, 0.8))
        assert charts.dominates((4, 0.8), (5, 0.8))
        assert not charts.dominates((4, 0.7), (5, 0.8))
        assert not charts.dominates((5, 0.8), (5, 0.8))

    def test_files(self, tmp_path):
        write(tmp_path, self.RESULTS, ["accuracy", "length (tokens)", "seconds"], {"other": "base"})
        text = (tmp_path / "report.md").read_text()
        assert "| base |  | 0.600 ± 0.141 |  | 10.0 ± 0.0 |  | 30 ± 0 |  |" in text
        assert "Made by `COMMAND`" in text
        assert "2 to 3 seeds" in text
        for name in [*charts.CHARTS, *(f"{each}_arithmetic" for each in pictures.PICTURES)]:
            assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
            assert f"({name}.png)" in text

    @pytest.mark.parametrize("name", [path.stem for path in COMMITTED])
    def test_reports_of_committed_results_are_current(self, name):
        comparison = Comparison.load(ROOT / f"benchmarks/comparisons/{name}.yaml")
        comparison = replace(comparison, results_dir=ROOT / comparison.results_dir)
        assert not unfinished(comparison)  # also rejects results of other settings
        folder, results = ROOT / comparison.report_dir, collect(comparison)
        if comparison.contrasts:
            found = summarise_study(comparison, results)
            text = study_text(found, comparison.metrics)
        else:
            found = report.plain_summary(comparison, results)
            text = report.plain_text(found, comparison.metrics)
        hint = f"run canon-trl compare benchmarks/comparisons/{name}.yaml --jobs 0"
        assert json.dumps(found, indent=1) + "\n" == (folder / "report.json").read_text(), hint
        written = (folder / "report.md").read_text()
        assert text in written, hint
        assert all((folder / picture).exists() for picture in re.findall(r"\]\((\w+\.png)\)", written))

    @pytest.mark.parametrize("page", ["docs/comparisons.md", "docs/methods/canon.md"])
    def test_intervals_on_a_page_come_from_a_report(self, page):
        number = r"[+-]\d\.\d{3}"
        found = re.findall(rf"{number} \({number} to {number}\)", (ROOT / page).read_text())
        reports = "".join((folder / "report.md").read_text() for folder in PUBLISHED)
        assert len(found) >= 4 and not [each for each in found if each not in reports]

    def test_the_page_has_the_contrasts_of_the_study(self):
        found = json.loads((ROOT / "docs/comparisons/study/report.json").read_text())
        rows = [line for line in contrasts_table(found) if line.startswith("|")]
        assert "<!-- contrasts -->\n" + "\n".join(rows) in (ROOT / "docs/comparisons.md").read_text()

    @pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
    def test_published_reports_have_five_seeds_and_match_their_numbers(self, folder):
        summary = json.loads((folder / "report.json").read_text())
        metrics = yaml.safe_load((ROOT / f"benchmarks/comparisons/{folder.name}.yaml").read_text())["metrics"]
        if "contrasts" in summary:  # a study, which is published while it runs
            assert study_text(summary, metrics) in (folder / "report.md").read_text()
            return
        assert table(summary, metrics) in (folder / "report.md").read_text()
        assert predictions_table(summary, metrics) in (folder / "report.md").read_text()
        for found in summary.values():
            if found.get("exploratory"):
                continue
            assert all(len(row["seeds"]) >= 5 for row in found["methods"].values())

    def test_predictions_are_next_to_their_results(self, tmp_path):
        results = [result("base", seed, 0.5, 10.0) for seed in (1, 2, 3)]
        results += [result("other", seed, 0.6 + seed / 100, 10.0 + (-1) ** seed) for seed in (1, 2, 3)]
        metrics = ["accuracy", "length (tokens)", "pass@8"]
        predictions = {"arithmetic": {"other": {"accuracy": "lower", "length (tokens)": "none", "pass@8": "higher"}}}
        write(tmp_path, results, metrics, {"other": "base"}, predictions=predictions, exploratory=True)
        text = (tmp_path / "report.md").read_text()
        start = "| arithmetic | other - base |"
        assert f"{start} accuracy | lower | **+0.120 (+0.095 to +0.145)** | against the prediction |" in text
        assert f"{start} length (tokens) | none | [-0.3 (-3.2 to +2.5)] | none seen |" in text
        assert f"{start} pass@8 | higher | [+0.000] | not enough runs |" in text
        assert outcome("lower", {"mean": -1.0, "low": -2.0, "is_noise": False}) == "as predicted"
        assert outcome("lower", {"mean": -1.0, "low": -2.0, "is_noise": True}) == "not decided"
        assert outcome("none", {"mean": 1.0, "low": 0.5, "is_noise": False}) == "against the prediction"

    def test_runs_without_a_right_answer_do_not_hide_others(self, tmp_path):
        """Such a run has no tokens per right answer, and entropy 0 from the first evaluation on."""
        collapsed = result("collapsed", 2, 0.5, 1.0)
        collapsed["evaluation"] |= {"tokens_per_right_answer": None, "avg": 0.0}
        for point in collapsed["curve"]:
            point |= {"accuracy": 0.0, "entropy": 0.0}
        collapsed["curve"].pop()  # the run ended earlier
        dead = [json.loads(json.dumps(collapsed | {"method": "dead", "seed": seed})) for seed in (1, 2)]
        results = [*self.RESULTS, result("collapsed", 1, 0.5, 20.0), collapsed, *dead]
        metrics, baselines = ["accuracy", "tokens per right answer"], {"other": "base", "collapsed": "base"}
        write(tmp_path, results, metrics, baselines)
        axes = Figure().subplots()
        for method, seeds in by_method(results, "arithmetic").items():
            pictures.draw_learning_curve(axes, seeds, BASELINE, method)
        lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert lines["collapsed"] == [[0, 0.1], [10, 0.2]] and len(lines["base"]) == 3
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
        assert "the mean is over the other runs, with their count, and there is no difference" in text
        drawn = {path.stem for path in tmp_path.glob("*.png")}
        assert drawn == {"final_accuracy", *(f"{name}_arithmetic" for name in pictures.PICTURES)} - {
            "time_curves_arithmetic"
        }

    def test_differences_without_an_interval(self, tmp_path):
        """With one pair, or equal differences, the report shows brackets and the JSON file null."""
        results = [
            result(method, seed, accuracy, 9.0) for seed in (1, 2) for method, accuracy in (("a", 0.5), ("b", 0.75))
        ]
        results.append(result("c", 1, 0.25, 9.0))
        baselines = {"b": "a", "c": "a"}
        write(tmp_path, results, ["accuracy"], baselines)
        text = (tmp_path / "report.md").read_text()
        assert "| b | a | 0.750 ± 0.000 | [+0.250] |" in text and "| c | a | 0.250 | [-0.250] |" in text
        assert "Differences without an interval come from one pair, or are the same in all pairs" in text
        methods = json.loads((tmp_path / "report.json").read_text())["arithmetic"]["methods"]
        wanted = {"mean": 0.25, "low": None, "high": None, "pairs": 2, "is_noise": True}
        assert methods["b"]["accuracy"]["difference"] == wanted

    def test_unknown_metric(self):
        with pytest.raises(ValueError, match=r"metrics has 'acuracy' .*choose from"):
            metric("acuracy")

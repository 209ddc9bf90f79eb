"""Comparisons of methods: the options of a comparison file, and the harness on runs of two steps."""

import json
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

from canon_trl.comparing import executing
from canon_trl.comparing.comparison import Comparison
from canon_trl.comparing.executing import collect, sample_values, unfinished
from canon_trl.comparing.files import write_yaml
from canon_trl.comparing.metrics import METRICS
from canon_trl.comparing.performing import small
from canon_trl.comparing.training_options import DATA_OPTIONS, SCRIPTS, evaluation_options

pytestmark = pytest.mark.timeout(900)  # one test does a whole run
ROOT = Path(__file__).parents[2]
COMPARISONS = sorted((ROOT / "benchmarks" / "comparisons").glob("*.yaml"))


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_every_comparison_and_the_options_of_its_runs_parse(path, tmp_path, monkeypatch):
    from canon_trl.cli.arguments import parse
    from canon_trl.cli.benchmarks import read_benchmarks
    from canon_trl.cli.train import TRAINERS

    comparison = Comparison.load(path)
    monkeypatch.syspath_prepend(comparison.folder)
    assert len(comparison.seeds) >= 5 - 2 * comparison.exploratory, "fewer runs say little about spread"
    assert {run.seed for run in comparison.runs()} == set(comparison.seeds)
    for run in comparison.runs():
        if run.seed != comparison.seeds[0]:
            continue
        settings = comparison.settings_of(run)
        kind = TRAINERS[SCRIPTS[settings["script"]]]
        # a machine without a GPU or bf16 rejects the config before any other check
        here = {"use_cpu": True, "bf16": False, "output_dir": str(tmp_path)}
        config = write_yaml(tmp_path / "options.yaml", settings["training"] | here)
        parse(["--config", str(config)], kind.arguments, kind.config, command="train", embedded="")
        (tmp_path / "model").mkdir(exist_ok=True)
        options = evaluation_options(settings, model=tmp_path / "model", folder=tmp_path / "evaluation")
        config = write_yaml(tmp_path / "evaluation.yaml", options)
        (benchmark,), _, _ = read_benchmarks(["--config", str(config)])
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
    command = [sys.executable, "-m", "canon_trl", "compare", str(path), *flags]
    return subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_values_and_evaluations_use_the_prompts_of_training(tmp_path, monkeypatch):
    """They share the options that build prompts, and values also those of the sampler, unless the file differs."""
    training = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": 0.7, "top_p": 0.9, "max_steps": 2}
    values = {"num_samples": 2, "top_p": 1.0}
    comparison = Comparison.load(write_comparison(tmp_path, options=training, values=values))
    monkeypatch.setattr(executing, "start", lambda *arguments, **streams: True)
    sample_values(comparison, "arithmetic", 1)
    written = yaml.safe_load((comparison.values_of("arithmetic") / "options.yaml").read_text())
    assert written == values | {
        "task": "arithmetic",
        "chat_template_kwargs": {"enable_thinking": False},
        "temperature": 0.7,
        "output_dir": str(comparison.values_of("arithmetic")),
    }
    settings = comparison.settings_of(comparison.runs()[0])
    options = evaluation_options(settings, model=tmp_path / "model", folder=tmp_path / "evaluation")
    assert options["chat_template_kwargs"] == {"enable_thinking": False} and "temperature" not in options


def test_training_and_evaluation_share_every_option_of_data_and_rewards():
    """The shared options are those that recipes and sampling have in common with training, except the policy's."""
    from canon_trl import CANONConfig
    from canon_trl.cli.arguments import RecipeArguments
    from canon_trl.cli.sampling import SamplingArguments

    sampling, training = ({each.name for each in fields(kind)} for kind in (SamplingArguments, CANONConfig))
    of_training = {
        "dataset_streaming",
        "dataset_train_split",
        "ignore_bias_buffers",
        "reward_flip",
        "task_train_prompts",
    }
    of_the_policy = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "use_vllm", "seed"}
    shared = {each.name for each in fields(RecipeArguments)} - of_training | sampling & training - of_the_policy
    assert shared == {*DATA_OPTIONS}


class TestHarness:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        """A comparison that is killed after its first result and then finished."""
        folder = tmp_path_factory.mktemp("comparison")
        path = write_comparison(folder)
        killed = harness(path, "--jobs", "2")
        deadline = time.monotonic() + 600
        while not (first := list(folder.glob("runs/runs/**/result.json"))):
            assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()[0]
            time.sleep(0.2)
        os.kill(killed.pid, signal.SIGKILL)  # its current run survives; the next call waits for it
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

    def test_a_run_can_be_repeated_from_its_options(self, folder):
        """The options saved with a run are those of the training script."""
        from canon_trl.cli import train

        run = folder / "runs/runs/arithmetic/dr_grpo/1"
        config = yaml.safe_load((run / "options.yaml").read_text()) | {"output_dir": str(folder / "again")}
        again = write_yaml(folder / "again.yaml", config)
        history = train.main(["--config", str(again)]).state.log_history
        points = [point["accuracy"] for point in json.loads((run / "result.json").read_text())["curve"]]
        assert [e["eval_rewards/accuracy/mean"] for e in history if "eval_reward" in e] == points

    def test_the_report(self, folder):
        summary = json.loads((folder / "runs/report/report.json").read_text())
        methods = summary["arithmetic"]["methods"]
        assert methods["astar, po"]["seeds"] == [1, 2]
        found = json.loads((folder / "runs/runs/arithmetic/astar_po/2/result.json").read_text())
        assert methods["astar, po"]["accuracy"]["values"][1] == found["evaluation"]["avg"]
        # the time of A*-PO includes stage 1
        times = METRICS["seconds"][0]
        collected = collect(Comparison.load(folder / "comparison.yaml"))
        (one,) = [run for run in collected if (run["method"], run["seed"]) == ("astar, po", 2)]
        stage1 = json.loads((folder / "runs/values/arithmetic/seconds.json").read_text())
        assert times(one) == pytest.approx(found["curve"][-1]["seconds"] + stage1)

    def test_results_of_other_settings_are_rejected(self, folder):
        changed = yaml.safe_load((folder / "comparison.yaml").read_text())
        changed["options"]["max_steps"] = 3
        (folder / "changed.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(ValueError, match=r"was made with training.max_steps=2, not 3; delete it or name"):
            unfinished(Comparison.load(folder / "changed.yaml"))

    def test_runs_that_share_a_process_do_not_depend_on_each_other(self, folder, tmp_path):
        methods = {"dr_grpo": {"advantage_estimator": "dr_grpo"}}
        kept = tmp_path / "kept"
        path = write_comparison(tmp_path, methods=methods, runs_per_process=2, results_dir=str(kept))
        process = harness(path, "--jobs", "1")
        output, _ = process.communicate(timeout=800)
        assert process.returncode == 0, output
        for seed in (1, 2):
            found = json.loads((kept / f"runs/arithmetic/dr_grpo/{seed}.json").read_text())
            alone = small(json.loads((folder / f"runs/runs/arithmetic/dr_grpo/{seed}/result.json").read_text()))
            assert found["training"] == alone["training"] and len(found["training"]["accuracy"]) == 2
            assert found["evaluation"] == alone["evaluation"]
        assert unfinished(Comparison.load(path)) == []

    @pytest.mark.parametrize("together", [1, 2])
    def test_a_failed_run_is_named_and_the_others_continue(self, tmp_path, together):
        methods = {
            "broken": {"advantage_estimator": "no_such_estimator"},
            "dr_grpo": {"advantage_estimator": "dr_grpo"},
        }
        path = write_comparison(tmp_path, methods=methods, seeds=[1], runs_per_process=together)
        process = harness(path, "--jobs", "2")
        output, _ = process.communicate(timeout=800)
        assert process.returncode != 0
        assert "broken seed 1: FAILED" in output and "1 of 2 runs failed" in output
        log = tmp_path / "runs/runs/arithmetic/broken/1/log.txt"
        assert "no_such_estimator" in log.read_text()
        assert "| dr_grpo |" in (tmp_path / "runs/report/report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "grpo"}, "baseline='grpo' .*must be one of the methods"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] must contain at least one number and no duplicates"),
        ({"metrics": ["speed"]}, "metrics has 'speed'"),
        ({"metrics": ["pass@64"]}, "metrics has 'pass@64', which needs its k in evaluate.pass_at_k"),
        ({"sedes": [1]}, r"has the unknown keys \['sedes'\] .*known:"),
        ({"methods": {"dr_grpo": {"script": "train"}}}, "methods.dr_grpo.script='train' must be one of"),
        ({"methods": {"dr_grpo": {}, "dr, grpo": {}, "dr grpo": {}}}, "would share the folder 'dr_grpo'"),
        ({"methods": {"dr_grpo": {"baseline": "grpo"}}}, "methods.dr_grpo.baseline='grpo' must be one of"),
        (
            {"methods": {"dr_grpo": {}, "astar": {"script": "train_astar_po", "temperature": 0.5, "top_k": 9}}},
            r"methods.astar has \['temperature', 'top_k'\], but all methods of a task share the values",
        ),
        ({"methods": {"dr_grpo": {"tasks": ["maths"]}}}, r"methods.dr_grpo.tasks has \['maths'\]"),
        ({"predictions": {"hint": {}}}, "predictions has 'hint'; the tasks are"),
        ({"predictions": {"arithmetic": {"dr_grpo": {}}}}, "has 'dr_grpo'; the methods with a baseline are"),
        ({"predictions": {"arithmetic": {"astar, po": {"length": "lower"}}}}, r"has \['length'\]; the metrics are"),
        ({"predictions": {"arithmetic": {"astar, po": {"accuracy": "up"}}}}, r"has \['up'\]; choose from"),
    ],
)
def test_invalid_comparisons_are_rejected(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Comparison.load(write_comparison(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the comparison '.*missing.yaml'"),
        ("- 1", "must contain keys and values, not a list"),
        ("seeds: [1", "cannot read the comparison"),
        ("seeds: [1]", r"has no keys \['baseline', 'methods', 'metrics', 'output_dir', 'tasks'\]"),
    ],
)
def test_files_that_are_no_comparison(tmp_path, content, message):
    path = tmp_path / "missing.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        Comparison.load(path)

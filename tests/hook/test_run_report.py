"""What a run writes and prints by itself: progress, metrics, curves, held-out accuracy."""

import json
import re
from types import SimpleNamespace

import pandas
import pytest
from PIL import Image
from toy import TASK, make_trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import GRPOConfig

from canon_trl import PluggableGRPOTrainer
from canon_trl.evaluation import CompactProgress, RunReport, save_history
from canon_trl.evaluation.run_report import held_out_lines, was_evaluated
from canon_trl.evaluation.training_curves import DATASET, _lines, _panels, evaluated_dataset

HELD_OUT = {"trainer_options": {"eval_dataset": TASK.dataset("test", 8)}, "eval_strategy": "steps", "eval_steps": 2}
WRITERS = {
    "pandas.DataFrame.to_csv": ".csv",
    "pathlib.Path.write_text": ".json",
    "matplotlib.figure.Figure.savefig": ".png",
}
FILES = {"metrics.csv", "metrics.json", "curves.png"}


def files(folder):
    return {path.name for path in folder.iterdir()} & FILES


def test_a_run_writes_its_log_and_prints_the_accuracy(tmp_path, capsys):
    trainer = make_trainer(tmp_path, reports=True, max_steps=2, eval_on_start=True, **HELD_OUT)
    trainer.train()
    table = pandas.read_csv(tmp_path / "metrics.csv")
    assert table.columns.tolist()[:4] == ["step", "epoch", "reward", "loss"]
    assert len(table) == len(json.loads((tmp_path / "metrics.json").read_text())) == len(trainer.state.log_history)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    before, after = table["eval_rewards/accuracy/mean"].dropna()
    line = f"accuracy on held-out prompts: {before:.3f} before, {after:.3f} after training"
    assert capsys.readouterr().out.splitlines().count(line) == 1


def test_a_plain_config_and_an_own_estimator_report_too(tmp_path):
    options = {"advantage_estimator": lambda rewards: rewards - rewards.nanmean(dim=1, keepdim=True)}
    trainer = make_trainer(tmp_path, PluggableGRPOTrainer, GRPOConfig, options, reports=True, max_steps=1)
    trainer.train()
    assert files(tmp_path) == FILES


def test_a_later_evaluation_prints_the_accuracy_and_is_added_to_the_files(tmp_path, capsys):
    options = HELD_OUT | {"eval_steps": 1, "eval_delay": 9}  # none before the end
    trainer = make_trainer(tmp_path, reports=True, max_steps=2, eval_on_start=True, **options)
    trainer.train()
    assert not was_evaluated(trainer)
    assert "held-out" not in capsys.readouterr().out
    trainer.evaluate()
    assert was_evaluated(trainer)
    assert re.search(r"held-out prompts: [\d.]+ before, [\d.]+ after training", capsys.readouterr().out)
    assert pandas.read_csv(tmp_path / "metrics.csv").dropna(subset="eval_reward")["step"].tolist() == [0, 2]


def test_the_line_names_the_step_of_a_late_first_evaluation(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3, **HELD_OUT)
    trainer.train()
    (line,) = held_out_lines(trainer)
    assert re.search(r": [\d.]+ at step 2, [\d.]+ after training", line)


def test_the_line_is_of_the_best_model_if_that_was_loaded():
    entries = [{"step": step, "eval_rewards/right/mean": mean} for step, mean in ((0, 0.2), (10, 0.9), (20, 0.5))]
    trainer = SimpleNamespace(
        args=SimpleNamespace(load_best_model_at_end=True),
        accuracy_name="right",
        state=SimpleNamespace(log_history=entries, global_step=20, best_global_step=10),
    )
    best = "right on held-out prompts: 0.200 before, 0.900 after training (best, step 10)"
    assert held_out_lines(trainer) == [best]
    trainer.args.load_best_model_at_end = False
    assert held_out_lines(trainer) == ["right on held-out prompts: 0.200 before, 0.500 after training"]


def test_a_policy_reward_is_not_reported_as_accuracy(tmp_path, capsys):
    only = HELD_OUT["trainer_options"] | {"reward_funcs": None}
    options = HELD_OUT | {"trainer_options": only, "policy_reward": "rent", "eval_steps": 1}
    trainer = make_trainer(tmp_path, reports=True, max_steps=1, **options)
    trainer.train()
    assert trainer.accuracy_name is None
    assert any("eval_rewards/rent/mean" in entry for entry in trainer.state.log_history)
    assert held_out_lines(trainer) == [] and "held-out" not in capsys.readouterr().out


def test_each_evaluation_dataset_has_a_line(tmp_path):
    data = {"easy": TASK.dataset("test", 8), "hard": TASK.dataset("test", 8, seed=1)}
    trainer = make_trainer(
        tmp_path, trainer_options={"eval_dataset": data}, max_steps=1, eval_strategy="steps", eval_steps=1
    )
    trainer.train()
    assert [line.split(":")[0] for line in held_out_lines(trainer)] == [
        f"accuracy on held-out prompts of {name}" for name in data
    ]
    assert len(held_out_lines(trainer, "easy")) == 1
    log = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert set(drawn(log, "accuracy")["accuracy (share of responses)"][0]) == {"held out: easy", "held out: hard"}


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_the_curves_so_far(tmp_path, stop):
    calls = []

    def reward(completions, **kwargs):
        calls.append(completions)
        if len(calls) == 3:
            raise stop
        return TASK.reward(completions, **kwargs)

    trainer = make_trainer(tmp_path, trainer_options={"reward_funcs": reward}, reports=True, max_steps=4)
    with pytest.raises(stop):
        trainer.train()
    assert pandas.read_csv(tmp_path / "metrics.csv")["step"].tolist() == [1, 2]
    assert files(tmp_path) == FILES


def test_a_resumed_run_that_logs_nothing_keeps_the_longer_log(tmp_path):
    def make(fails_at):
        calls = []

        def reward(completions, **kwargs):
            calls.append(completions)
            if len(calls) == fails_at:
                raise RuntimeError
            return TASK.reward(completions, **kwargs)

        saving = {"save_strategy": "steps", "save_steps": 2}
        return make_trainer(tmp_path, trainer_options={"reward_funcs": reward}, reports=True, max_steps=6, **saving)

    for fails_at, steps in ((4, [1, 2, 3]), (1, [1, 2, 3]), (4, [1, 2, 3, 4, 5])):
        with pytest.raises(RuntimeError):
            resume = (tmp_path / "checkpoint-2").exists()
            make(fails_at).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resume else None)
        assert pandas.read_csv(tmp_path / "metrics.csv")["step"].tolist() == steps


def test_a_log_that_cannot_be_written_does_not_lose_the_run(tmp_path, caplog):
    trainer = make_trainer(tmp_path, reports=True, max_steps=1)
    (tmp_path / "metrics.csv").mkdir()
    trainer.train()
    assert trainer.state.global_step == 1
    assert "metrics.csv, metrics.json or curves.png could not be written" in caplog.text


@pytest.mark.parametrize(("writer", "suffix"), WRITERS.items())
def test_an_interrupted_write_leaves_the_previous_files(tmp_path, monkeypatch, writer, suffix):
    paths = save_history(LOG[:2], tmp_path, accuracy_reward="right")
    before = {path: path.read_bytes() for path in paths}

    def write_half(content, path, *args, **kwargs):
        with open(path, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, write_half if "Path" not in writer else lambda path, text: write_half(text, path))
    with pytest.raises(KeyboardInterrupt):
        save_history(LOG, tmp_path, accuracy_reward="right")
    (interrupted,) = (path for path in paths if path.suffix == suffix)
    assert interrupted.read_bytes() == before[interrupted]
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_the_report_can_be_removed(tmp_path):
    trainer = make_trainer(tmp_path, reports=True, max_steps=1)
    trainer.remove_callback(RunReport)
    trainer.train()
    assert not files(tmp_path)


def test_the_bar_shows_numbers_instead_of_lines(tmp_path, capsys):
    make_trainer(tmp_path, max_steps=2, disable_tqdm=False).train()
    done = capsys.readouterr()
    assert "{'loss'" not in done.out + done.err
    assert "2/2" in done.err and "reward=" in done.err and "length=" in done.err and "entropy=" in done.err


def test_the_bar_replaces_transformers_and_nothing_else(tmp_path):
    def kinds(**options):
        return [type(callback) for callback in make_trainer(tmp_path, **options).callback_handler.callbacks]

    assert CompactProgress in kinds(disable_tqdm=False) and ProgressCallback not in kinds(disable_tqdm=False)
    assert PrinterCallback in kinds(disable_tqdm=True) and CompactProgress not in kinds(disable_tqdm=True)


LOG = [
    {"step": step, "rewards/right/mean": step / 4, "canon/mu": 1.0, "entropy": 1.07 + 1e-6 * step, "reward": 2.0}
    | {"completions/mean_length": 10.0 + step, "metric/own/mean": 3.0 * step, "eval_rewards/right/mean": 0.5}
    for step in (1, 2, 3)
]


def drawn(log, accuracy="right"):
    table = pandas.DataFrame(log).assign(**{DATASET: [evaluated_dataset(entry) for entry in log]})
    panels = _panels(table, accuracy)
    return {panel.title: ([*lines], panel.share) for panel in panels if (lines := _lines(table, panel))}


def test_the_picture_leaves_out_constants():
    assert drawn(LOG) == {
        "accuracy (share of responses)": (["train", "held out"], True),
        "length (tokens)": (["train"], False),
        "own (mean metric)": (["train"], False),
    }


def test_the_halves_of_a_metric_replace_its_mean():
    log = [entry | {"canon/metric_higher": 2.0 * entry["step"], "canon/metric_lower": 0.0} for entry in LOG]
    assert [*drawn(log)][-1] == "mean metric of the halves"


def test_a_reward_that_is_not_a_share_is_not_called_accuracy():
    log = [entry | {"rewards/right/mean": 10.0 * entry["step"]} for entry in LOG]
    assert next(iter(drawn(log).items())) == ("right (mean reward)", (["train", "held out"], False))
    assert next(iter(drawn(LOG, accuracy="absent").items())) == ("mean reward", (["train"], False))


@pytest.mark.parametrize("log", [LOG, LOG[:1], [{"step": 1, "train_loss": 0.0}]])
def test_the_picture_is_drawn_from_any_log(log, tmp_path):
    *_, png = save_history(log, tmp_path, accuracy_reward="right")
    with Image.open(png) as picture:
        assert picture.width >= 400

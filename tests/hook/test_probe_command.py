"""`canon-trl probe` takes the recipe of a training run."""

import json
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import yaml

from canon_trl.cli import probe
from canon_trl.tasks import TASKS

SMALL = ["--num_prompts", "12", "--num_generations", "4", "--per_device_train_batch_size", "16"]


def run(tmp_path, *flags):
    return probe.main([*SMALL, "--target_entropy", "0", "--output_dir", str(tmp_path), *flags])


def count_of_digits(completions, **kwargs):
    return [float(sum(letter.isdigit() for letter in text)) for text in completions]


def test_a_probe_of_a_task(tmp_path, capsys):
    report = run(tmp_path, "--task", "verbosity")
    assert report.settings["model"] == str(TASKS["verbosity"].model_path)
    assert report.settings["max_completion_length"] == 28  # of the recipe with the task's name
    assert (report.settings["num_samples"], report.settings["prompts_per_step"]) == (4, 4)
    found = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert found["prompts"]["num_prompts"] == 12
    shown = capsys.readouterr().out
    assert all(f"- {each['says']}\n" in shown for each in found["verdict"])
    again = run(tmp_path, "--task", "verbosity")  # from the progress
    assert {**again.as_json(), "seconds": {}} == {**report.as_json(), "seconds": {}}


def test_the_recipe_of_a_training_run(tmp_path):
    recipe = {
        "base": "arithmetic",
        "canon_metric": "test_probe_command:count_of_digits",
        "max_completion_length": 12,
        "loss_type": "grpo",
        "learning_rate": 1.0e-5,  # a probe reads the whole recipe of a run, and does not train
        "reward_flip": 0.25,
        "use_peft": True,
        "lora_r": 2,
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(recipe))
    report = run(tmp_path, "--config", str(path), "--num_samples", "6", "--probe_dir", str(tmp_path / "here"))
    assert report.settings["num_samples"] == 6 and report.settings["loss_type"] == "grpo"
    assert recipe["canon_metric"] in report.metrics and f"canon inter, {recipe['canon_metric']}" in report.estimators
    assert report.settings["sketched_layers"] == 8  # two matrices for each of two layers in two blocks
    assert report.settings["reward_weights"] == [1.0, 0.0]
    assert (tmp_path / "here" / "probe.png").is_file()


def test_a_probe_does_not_resume_with_another_share_of_flips(tmp_path):
    run(tmp_path, "--reward_flip", "0.35")
    wanted = (
        r"'reward_flip': 0\.35, .* not .*'reward_flip': 0\.2,.*; choose another probe_dir \(in Python: output_dir\)"
    )
    with pytest.raises(ValueError, match=wanted):
        run(tmp_path, "--reward_flip", "0.2")


def test_tasks_without_a_recipe_use_that_of_another():
    assert probe.with_recipe(["--task", "hint"])[1] in ("hint", "arithmetic")
    assert probe.with_recipe(["--task=verbosity"]) == ["--config", "verbosity", "--task=verbosity"]
    assert probe.with_recipe(["--config", "mine.yaml", "--task", "hint"])[:2] == ["--config", "mine.yaml"]
    assert probe.with_recipe([]) == []


def test_layers_are_words_or_a_number():
    given = (None, ["all"], ["2"], ["q_proj", "v_proj"])
    assert [probe.layers_of(each) for each in given] == [None, "all", 2, ["q_proj", "v_proj"]]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--trainer", "astar_po"], "trainer='astar_po': a probe compares advantage estimators"),
        (["--policy_reward", "rent"], "policy_reward='rent': a probe needs rewards from reward functions"),
        (["--vllm_kwargs", "{}x"], "vllm_kwargs='{}x' would be ignored: use_vllm is False"),
        (["--num_samples", "1"], "num_samples=1 must be at least 2"),
        (["--num_prompts", "1"], "num_prompts=1 must be at least 2"),
        (["--layers", "experts"], "layers='experts' matches none of the linear layers"),
        (["--metrics", "entropi"], "metrics='entropi' is unknown"),
        (["--estimators", "dr_gpo"], "'dr_gpo' is unknown"),
        (["--task", "arithmetics"], "task='arithmetics' must be one of"),
    ],
)
def test_bad_input(tmp_path, flags, error):
    with pytest.raises(ValueError, match=error):
        run(tmp_path, *flags)
    assert not list(tmp_path.rglob("chunks-*"))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm(tmp_path):
    with pytest.raises(ImportError, match="use_vllm=True needs vllm"):
        run(tmp_path, "--use_vllm", "true")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"tensor_parallel_size": 1}),
        (["--vllm_max_model_length", "64"], {"tensor_parallel_size": 1, "max_model_len": 64}),
        (["--vllm_tensor_parallel_size", "2"], {"tensor_parallel_size": 2}),
        (["--vllm_max_model_length", "64", "--vllm_kwargs", '{"max_model_len": 32}'], {"max_model_len": 32}),
    ],
)
def test_the_engine_has_the_options_of_the_run(tmp_path, monkeypatch, flags, expected):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda **options: options, __spec__=object()))
    engines = []
    monkeypatch.setattr(probe, "samplers_of", lambda engine, *_: engines.append(engine))
    run(tmp_path, "--use_vllm", "true", *flags)  # without a sampler of the engine, the model samples
    assert expected.items() <= engines[0].items()
    assert ("max_model_len" in engines[0]) == ("--vllm_max_model_length" in flags)


def test_conversations_need_a_chat_template(tmp_path):
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "1+2=", "answer": "3"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--config", str(tmp_path / "run.yaml")]
    recipe = {
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "model_name_or_path": str(TASKS["arithmetic"].model_path),
        "reward_funcs": ["test_probe_command:count_of_digits"],
        "bf16": False,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match="the prompts are conversations, but the tokenizer has no chat template"):
        run(tmp_path, *data)


def test_a_folder_of_a_training_run_is_rejected(tmp_path):
    (tmp_path / "trainer_state.json").touch()
    with pytest.raises(ValueError, match=r"^probe_dir=.* contains trainer_state\.json, so .*; name another probe_dir"):
        run(tmp_path, "--probe_dir", str(tmp_path))

"""The command `evaluate` on real models: its records and files, also after a kill."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import psutil
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from pyarrow import parquet
from recipe_runs import MATHS, data_flags
from toy import TASK, assert_same_but_for_rounding, base_model, byte_tokenizer
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from canon_trl.cli import evaluate
from canon_trl.evaluation import bootstrap_mean, majority_at_k, pass_at_k

ROOT = Path(__file__).parents[2]
FLAGS = ["--task", "arithmetic", "--task_eval_prompts", "24", "--num_samples", "8", "--pass_at_k", "1", "4", "8"]
FLAGS += ["--max_completion_length", "30", "--chunk_prompts", "2", "--save_responses", "true"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "whole"
    evaluate.main([*FLAGS, "--output_dir", str(folder)])
    return folder


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_records_match_the_responses_of_the_model(whole):
    table = pandas.read_parquet(whole / "arithmetic" / "records.parquet")
    assert list(table) == [
        *("prompt", "answer", "rewards", "correct", "lengths", "truncated", "entropies", "answers", "responses")
    ]
    assert table["prompt"].tolist() == TASK.dataset("test", 24)["prompt"][:]
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    for row in table.itertuples():
        assert row.rewards.tolist() == TASK.reward(row.responses, answer=[row.answer] * 8)
        assert row.correct.tolist() == (row.rewards == 1).tolist()
        assert row.answers.tolist() == [TASK.answer_of(text) for text in row.responses]
        for text, length, truncated in zip(row.responses, row.lengths, row.truncated, strict=True):
            # The end-of-text token counts, and special tokens leave no text.
            assert length >= len(tokenizer(text)["input_ids"]) + (not truncated)
            assert length == 30 if truncated else length <= 30
        assert (row.entropies > 0).all() and (row.entropies < math.log(21)).all()


def test_the_summary_follows_from_the_records(whole):
    table = pandas.read_parquet(whole / "arithmetic" / "records.parquet")
    summary = summary_of(whole)
    assert list(summary) == ["arithmetic"]
    numbers = summary["arithmetic"]
    correct, lengths = np.stack(table["correct"]), np.stack(table["lengths"])
    entropies = np.stack(table["entropies"])
    assert (numbers["num_prompts"], numbers["num_samples"], numbers["unscored_prompts"]) == (24, 8, 0)
    assert numbers["avg"] == correct.mean()
    per_prompt = pass_at_k(8, correct.sum(axis=1), 4)
    interval = bootstrap_mean(per_prompt)
    assert list(numbers["pass_at_k"]) == ["1", "4", "8"]
    assert numbers["pass_at_k"]["4"] == {"mean": interval.mean, "low": interval.low, "high": interval.high}
    assert interval.low < interval.mean < interval.high
    assert numbers["pass_at_k"]["1"]["mean"] == pytest.approx(numbers["avg"], abs=1e-12)
    assert numbers["avg_interval"] == {key: numbers["pass_at_k"]["1"][key] for key in ("low", "high")}
    assert numbers["pass_at_k"]["8"]["mean"] == correct.any(axis=1).mean()
    votes = majority_at_k(table["answers"].tolist(), list(correct), 8)
    assert list(numbers["majority_at_k"]) == ["4", "8"]
    assert numbers["majority_at_k"]["8"]["mean"] == votes.mean()
    assert numbers["length_right"] == lengths[correct].mean()
    assert numbers["median_length_wrong"] == np.median(lengths[~correct])
    assert numbers["truncated"] == np.stack(table["truncated"]).mean()
    assert numbers["entropy"] == pytest.approx((entropies * lengths).sum() / lengths.sum(), abs=1e-12)
    assert numbers["tokens_per_right_answer"] == lengths.sum() / correct.sum()
    assert numbers["settings"]["model"] == str(TASK.model_path)
    assert 0.15 < numbers["avg"] < 0.5  # the base model's accuracy without solutions of over 30 tokens
    assert 0.1 < numbers["truncated"] < 0.4  # those solutions


def test_the_table_for_readers(whole):
    numbers = summary_of(whole)["arithmetic"]
    header, _, row, _, note = (whole / "summary.md").read_text().splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    low, high = numbers["avg_interval"].values()
    assert cells["avg@n"] == f"{numbers['avg']:.3f} ({low:.3f} to {high:.3f})"
    assert {"pass@1", "pass@4", "pass@8", "majority@8", "truncated", "entropy (nats)"} <= cells.keys()
    assert "temperature 1.0" in note and "exact" in note and "95%" in note


def test_a_second_run_samples_nothing_and_may_change_the_threshold(whole, tmp_path, capfd):
    before = (whole / "arithmetic" / "records.parquet").read_bytes(), (whole / "summary.json").read_bytes()
    evaluate.main([*FLAGS, "--output_dir", str(whole), "--threshold", "1.5", "--pass_at_k", "2"])
    assert summary_of(whole)["arithmetic"]["avg"] == 0
    assert summary_of(whole)["arithmetic"]["tokens_per_right_answer"] is None
    evaluate.main([*FLAGS, "--output_dir", str(whole)])
    assert (whole / "arithmetic" / "records.parquet").read_bytes() == before[0]
    assert (whole / "summary.json").read_bytes() == before[1]
    assert "Loading weights" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "0.5"], "was started with temperature=1.0, not 0.5; choose another output_dir"),
        (["--task_eval_prompts", "23"], "was started with .*prompts=24, not 23"),
        (["--model_name_or_path", str(ROOT)], "was started with model="),
    ],
)
def test_other_settings_are_rejected(whole, flags, message, monkeypatch):
    monkeypatch.setattr(evaluate, "load_tokenizer", lambda *_: AutoTokenizer.from_pretrained(TASK.model_path))
    with pytest.raises(ValueError, match=message):
        evaluate.main([*FLAGS, "--output_dir", str(whole), *flags])


def test_a_changed_model_is_rejected(whole, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for file in TASK.model_path.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    flags = [*FLAGS, "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "evaluation")]
    evaluate.main([*flags, "--task_eval_prompts", "2"])
    os.utime(model / "model.safetensors", ns=(0, 0))  # as after another training
    with pytest.raises(ValueError, match="was started with model_files="):
        evaluate.main([*flags, "--task_eval_prompts", "2"])


def script(folder, *flags, ranks=1):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    if ranks == 2:
        command += ["--config_file", str(ROOT / "tests" / "configs" / "cpu_two_processes.yaml")]
    command += [str(ROOT / "examples" / "evaluate_model.py"), *FLAGS, "--output_dir", str(folder), *flags]
    return command, os.environ | {"HF_HUB_OFFLINE": "1"}


def count_chunks(folder):
    """Count the chunks that each rank has recorded."""
    return [path.read_text().count("\n") for path in folder.glob("arithmetic/.progress/chunks-*")]


def assert_same_results(folder, whole):
    """Compare responses, rewards and answers exactly, and numbers derived from entropies up to rounding."""
    tables = [parquet.read_table(each / "arithmetic" / "records.parquet").to_pylist() for each in (folder, whole)]
    assert_same_but_for_rounding(*tables)
    assert_same_but_for_rounding(summary_of(folder), summary_of(whole))


def test_two_ranks_and_a_kill_give_the_same_responses(whole, tmp_path):
    """Kill two processes after both have recorded a chunk, then finish on two processes and on one."""
    command, environment = script(tmp_path / "killed", ranks=2)
    process = psutil.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        chunks = count_chunks(tmp_path / "killed")
        if len(chunks) == 2 and min(chunks) > 0:
            for each in [*process.children(recursive=True), process]:
                each.kill()
            break
        time.sleep(0.01)
    process.wait()
    assert not (tmp_path / "killed" / "summary.json").exists(), "the run has ended before the kill"
    assert 2 <= sum(count_chunks(tmp_path / "killed")) < 12
    subprocess.run(["cp", "-r", str(tmp_path / "killed"), str(tmp_path / "alone")], check=True)
    for name, ranks in {"killed": 2, "alone": 1}.items():
        command, environment = script(tmp_path / name, ranks=ranks)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        assert_same_results(tmp_path / name, whole)


def test_other_threads_and_kernels_give_the_same_responses(whole, tmp_path):
    """Another order of additions changes the last digits of entropies but no token."""
    command, environment = script(tmp_path)
    environment |= {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
    environment |= {"OMP_WAIT_POLICY": "passive"}  # so that two threads do not spin on one free core
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same_results(tmp_path, whole)


@pytest.fixture(scope="module")
def chatter(tmp_path_factory):
    """A small untrained byte-level model with a chat template."""
    folder = tmp_path_factory.mktemp("chatter")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        intermediate_size=32,
        head_dim=16,
        dtype="float32",
        **sizes,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def test_several_benchmarks_with_one_model(chatter, tmp_path):
    """Evaluate an embedded task and two local files, each with its own options."""
    Dataset.from_list(MATHS).to_json(tmp_path / "maths.jsonl")
    Dataset.from_list([{"prompt": "1+1?", "answer": 2}]).to_csv(tmp_path / "sums.csv")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
output_dir: {tmp_path / "evaluation"}
model_name_or_path: {chatter}
reward_funcs: [accuracy_reward]
num_samples: 4
max_completion_length: 8
benchmarks:
  - name: maths
    dataset_name: {tmp_path / "maths.jsonl"}
    prompt_column: question
    answer_column: target
    answer_template: ${{answer}}$
    answer_extractor: math_verify
    system_prompt: Be brief.
    max_completion_length: 5
    num_samples: 3
    pass_at_k: [2]
  - name: sums
    dataset_name: {tmp_path / "sums.csv"}
  - name: embedded
    task: arithmetic
    task_eval_prompts: 3
    reward_funcs: ["canon_trl.tasks.arithmetic:accuracy"]
"""
    )
    evaluate.main(["--config", str(recipe)])
    summary = summary_of(tmp_path / "evaluation")
    assert list(summary) == ["maths", "sums", "embedded"]
    assert [(each["num_prompts"], each["num_samples"]) for each in summary.values()] == [(3, 3), (1, 4), (3, 4)]
    assert list(summary["maths"]["pass_at_k"]) == ["1", "2"]
    nothing_right = {"mean": 0.0, "low": 0.0, "high": pytest.approx(1 - 0.025 ** (1 / 3))}
    assert summary["maths"]["majority_at_k"] == {"2": nothing_right}, "three prompts"
    assert summary["sums"]["majority_at_k"] is None
    assert summary["sums"]["avg_interval"] == {"low": 0.0, "high": pytest.approx(0.975)}, "one prompt"
    assert all(each["settings"]["model"] == str(chatter) for each in summary.values())
    table = pandas.read_parquet(tmp_path / "evaluation" / "maths" / "records.parquet")
    assert [message["content"] for message in table["prompt"][0]] == ["Be brief.", MATHS[0]["question"]]
    assert table["solution"].tolist() == [f"${row['target']}$" for row in MATHS]
    assert all((lengths <= 5).all() for lengths in table["lengths"])
    text = (tmp_path / "evaluation" / "summary.md").read_text()
    assert "**sums**" in text and text.count("no majority vote: no answer_extractor was given") == 1
    assert "| 0.000 (0.000 to 0.975) |" in text and "no interval" not in text


def test_a_rounded_weighted_reward_of_1_counts_as_correct(tmp_path):
    """The records, the table and the summary agree, although 0.7 + 0.2 + 0.1 is rounded to less than 1."""
    flags = ["--task", "arithmetic", "--task_eval_prompts", "3", "--num_samples", "2", "--max_completion_length", "4"]
    flags += ["--reward_funcs", *["test_evaluate:always"] * 3, "--reward_weights", "0.7", "0.2", "0.1"]
    evaluate.main([*flags, "--output_dir", str(tmp_path / "evaluation")])
    table = pandas.read_parquet(tmp_path / "evaluation" / "arithmetic" / "records.parquet")
    assert np.stack(table["rewards"]).max() < 1, "the sum must be rounded down"
    assert np.stack(table["correct"]).all()
    numbers = summary_of(tmp_path / "evaluation")["arithmetic"]
    assert (numbers["avg"], numbers["length_wrong"], numbers["pass_at_k"]["2"]["mean"]) == (1.0, None, 1.0)
    # three prompts, all correct: the lower limit is 0.025 ** (1 / 3)
    assert "| 1.000 (0.292 to 1.000) |" in (tmp_path / "evaluation" / "summary.md").read_text()


def test_a_chat_template_from_a_file(tmp_path):
    """A model without a chat template reads prompts in the form of the given one."""
    Dataset.from_list([{"prompt": prompt, "answer": "1"} for prompt in TASK.dataset("test", 4)["prompt"]]).to_json(
        tmp_path / "data.jsonl"
    )
    (tmp_path / "plain.jinja").write_text("{{ messages[0]['content'] }}")
    flags = ["--chat_template_path", str(tmp_path / "plain.jinja"), "--answer_extractor", "test_evaluate:first_digit"]
    flags += ["--reward_funcs", "test_evaluate:has_mark", "--output_dir", str(tmp_path / "evaluation")]
    flags += ["--save_responses", "true", "--num_samples", "8", "--max_completion_length", "40"]
    evaluate.main(data_flags(tmp_path / "data.jsonl", *flags))
    numbers = summary_of(tmp_path / "evaluation")["data"]
    assert numbers["avg"] == 1.0, "the model must see the problem as in training"
    assert numbers["length_wrong"] is None
    table = pandas.read_parquet(tmp_path / "evaluation" / "data" / "records.parquet")
    assert table["answers"][0].tolist() == [first_digit(text) for text in table["responses"][0]]


def test_an_adapter_is_evaluated_with_its_base_model(tmp_path):
    """The folder of an adapter gives the results of the merged model, not those of the base model."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(base_model(), config)
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    for part, name in ((model, "adapter"), (tokenizer, "adapter"), (tokenizer, "merged")):
        part.save_pretrained(tmp_path / name)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "adapter" / "config.json").exists()
    records = {}
    for name in ("adapter", "merged", TASK.model_path):
        output = tmp_path / f"evaluation_{Path(name).name}"
        flags = ["--task", "arithmetic", "--task_eval_prompts", "6", "--num_samples", "2", "--save_responses", "true"]
        flags += ["--max_completion_length", "20", "--model_name_or_path", str(tmp_path / name)]
        evaluate.main([*flags, "--output_dir", str(output)])
        records[name] = pandas.read_parquet(output / "arithmetic" / "records.parquet")
    texts = {name: np.stack(table["responses"]).tolist() for name, table in records.items()}
    assert texts["adapter"] == texts["merged"] != texts[TASK.model_path]
    entropies = {name: np.stack(table["entropies"]) for name, table in records.items()}
    np.testing.assert_allclose(entropies["adapter"], entropies["merged"], atol=1e-4)


def test_vllm_rejects_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    flags = ["--task", "arithmetic", "--model_name_or_path", str(tmp_path), "--use_vllm", "true"]
    with pytest.raises(ValueError, match="is an adapter, which vLLM cannot load as a model; merge it into its"):
        evaluate.main([*flags, "--output_dir", str(tmp_path / "evaluation")])


def first_digit(text):
    return next((letter for letter in text if letter.isdigit()), None)


def always(completions, **kwargs):
    return [1.0] * len(completions)


def has_mark(completions, **kwargs):
    return [float("#" in completion[0]["content"]) for completion in completions]

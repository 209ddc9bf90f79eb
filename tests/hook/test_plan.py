"""`train --dry_run` rejects what the trainer would reject, and prints the length and the memory of the run."""

import json
import shutil

import pytest
from recipe_runs import RUN
from toy import TASK, base_model
from transformers import AutoModelForCausalLM

from canon_trl.cli import plan, train
from canon_trl.trainers import CANONTrainer


def dry_run(tmp_path, *flags):
    assert train.main([*RUN, "--output_dir", str(tmp_path / "run"), "--dry_run", *flags]) is None
    assert not (tmp_path / "run").exists()


def test_it_needs_no_weights_and_trains_nothing(tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(TASK.model_path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(OSError):
        AutoModelForCausalLM.from_pretrained(folder)
    dry_run(tmp_path, "--model_name_or_path", str(folder), "--steps_per_generation", "2", "--num_iterations", "3")
    shown = capsys.readouterr().out
    assert shown.startswith("the options and the data are valid; this run would be:\n")
    for line in (
        "data      16 prompts; 8 held out",
        "rollout   4 prompts x 4 responses = 16 responses of at most 12 tokens, on 1 process(es)",
        "updates   6 optimiser steps per rollout, each of 8 responses",
        "run       2 optimiser steps, 1 rollouts, 0.0833 epochs; 16 responses",
        f"saving    save_strategy=no, save_steps=500, {tmp_path / 'run'}",
    ):
        assert f"  {line}\n" in shown
    assert f"  {base_model().num_parameters():,} parameters, float32 " in shown


@pytest.mark.parametrize(
    "flags",
    [
        ("--max_steps", "-1", "--num_train_epochs", "1.5"),
        ("--max_steps", "3", "--gradient_accumulation_steps", "2"),
        ("--max_steps", "-1", "--num_train_epochs", "1", "--steps_per_generation", "2", "--num_iterations", "2"),
    ],
)
def test_the_length_is_that_of_the_run(tmp_path, flags, monkeypatch):
    flags = [*RUN, "--output_dir", str(tmp_path), "--eval_strategy", "no", *flags]
    trainer = train.main(flags)
    found = []
    monkeypatch.setattr(plan, "describe", lambda given: found.append(plan.measure(given["args"], given["train"])))
    train.main([*flags, "--output_dir", str(tmp_path / "dry"), "--dry_run", "true"])
    (length,) = found
    assert (length.steps, length.epochs) == (trainer.state.max_steps, pytest.approx(trainer.state.epoch))
    assert length.rollouts == trainer.args.rollouts(16)


def test_a_star_po(tmp_path, capsys):
    rows = [{"prompt": "1+2=", "answer": "3", "rewards": [1.0, 0.0]} for _ in range(9)]
    rows.append({"prompt": "1+3=", "answer": "4", "rewards": [0.0, 0.0]})  # left out: never solved
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "model"
    base_model().save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        content = (TASK.model_path / file).read_text()
        if file == "tokenizer_config.json":
            content = json.dumps(json.loads(content) | {"chat_template": "{{ messages[-1]['content'] }}"})
        (folder / file).write_text(content)
    flags = ["--trainer", "astar_po", "--dataset_name", str(tmp_path / "rows.jsonl"), "--model_name_or_path"]
    flags += [str(folder), "--reward_funcs", "think_format_reward", "--per_device_train_batch_size", "4"]
    flags += ["--use_cpu", "true", "--bf16", "false", "--num_train_epochs", "1", "--report_to", "none"]
    flags += ["--gradient_accumulation_steps", "1", "--output_dir", str(tmp_path / "run"), "--dry_run"]
    assert train.main(flags) is None
    shown = capsys.readouterr().out
    assert "data      9 prompts; no held out" in shown and "method    A*-PO" in shown
    assert "run       2 optimiser steps, 2 rollouts, 1 epochs; 8 responses" in shown
    assert "  reference model " in shown


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--canon_mu", "2"], ValueError, "canon_mu=2.0 must lie in"),
        (["--task_train_prompts", "1"], ValueError, "train_dataset has 1 prompts, but a rollout needs 2"),
        (["--accuracy_reward", "nothing"], ValueError, "accuracy_reward='nothing'"),
        (["--reward_weights", "1", "2"], ValueError, r"reward_weights=\[1.0, 2.0\] must be one for each of the 1"),
        (["--model_name_or_path", "no/such/folder"], ValueError, "model_name_or_path='no/such/folder'"),
        (["--entropy_source", "forward", "--canon_metric", "length"], ValueError, "entropy_source='forward'"),
        (["--rollout_sampler", "shared_prefx"], ValueError, "rollout_sampler"),
    ],
)
def test_it_rejects_what_the_trainer_rejects(tmp_path, flags, error, message):
    with pytest.raises(error, match=message):
        dry_run(tmp_path, *flags)


def test_vllm_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"use_vllm=True needs vllm; install canon-trl\[vllm\]"):
        dry_run(tmp_path, "--use_vllm", "true")


def memory(tmp_path, monkeypatch, *flags):
    found = []
    monkeypatch.setattr(plan, "describe", found.append)
    dry_run(tmp_path, *flags)
    parts, remarks = plan.memory(found[0])
    return list(parts.values()), " ".join(remarks)


class TestMemory:
    def test_full_training(self, tmp_path, monkeypatch):
        size = base_model().num_parameters()
        parts, remarks = memory(tmp_path, monkeypatch, "--beta", "0.1", "--gradient_checkpointing", "false")
        assert parts[:4] == [4 * size, 4 * size, 8 * size, 4 * size]  # the last is the reference model
        assert "gradient_checkpointing is off" in remarks and plan.LEFT_OUT in remarks

    def test_optimisers(self, tmp_path, monkeypatch):
        size = base_model().num_parameters()
        assert memory(tmp_path, monkeypatch, "--optim", "sgd")[0][:2] == [4 * size, 4 * size]
        assert 2 * size in memory(tmp_path, monkeypatch, "--optim", "adamw_8bit")[0]
        assert "the states of the optimiser adafactor" in memory(tmp_path, monkeypatch, "--optim", "adafactor")[1]

    def test_an_adapter(self, tmp_path, monkeypatch):
        size = base_model().num_parameters()
        lora = ["--use_peft", "true", "--lora_r", "2", "--lora_target_modules", ".*q_proj", "--dtype", "bfloat16"]
        parts, _ = memory(tmp_path, monkeypatch, *lora, "--beta", "0.1", "--gradient_checkpointing", "false")
        config = base_model().config
        outputs = config.num_attention_heads * config.head_dim
        adapter = config.num_hidden_layers * 2 * (config.hidden_size + outputs)
        assert parts[:3] == [2 * size, 4 * adapter, 8 * adapter]  # and no reference model

    def test_checkpointed_layers(self, tmp_path, monkeypatch):
        config = base_model().config
        parts, _ = memory(tmp_path, monkeypatch, "--gradient_checkpointing", "true")
        assert parts[-1] == config.num_hidden_layers * config.hidden_size * 8 * 12 * 4


def test_the_checks_run_in_the_order_of_the_trainer():
    """The stand-in comes right before TRL's class, so that every constructor of the package runs first."""
    made = type("Dry", (CANONTrainer, plan.StopsBeforeLoading), {})
    names = [each.__name__ for each in made.__mro__]
    assert names[names.index("StopsBeforeLoading") + 1] == "GRPOTrainer"
    assert names.index("PluggableGRPOTrainer") < names.index("StopsBeforeLoading")

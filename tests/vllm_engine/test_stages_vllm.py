"""Policy rewards, dynamic sampling, KL-Cov, A*-PO and controllers on the real vLLM engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from observe import (
    completions_table,
    count_forwards,
    keep_outputs,
    keep_rollouts,
    on_outputs,
    scored_entropy,
)
from test_canon_vllm import DATA, VLLM, make, varied
from toy import OPTIONS, logged, parameters
from transformers import AutoModelForCausalLM, AutoTokenizer

from canon_trl import AStarPOConfig, AStarPOTrainer
from canon_trl.advantages import gtpo_advantage
from canon_trl.sampling.samplers import TransformersSampler

ROOT = Path(__file__).parents[2]


def half_teach(prompts, completions, **kwargs):
    """A reward with spread for prompts about an even number."""
    even = [int(prompt[0]["content"].split()[2]) % 2 == 0 for prompt in prompts]
    return [float(index % 2) if teaches else 1.0 for index, teaches in enumerate(even)]


def test_dynamic_sampling_and_kl_cov(smollm2, tmp_path):
    trainer = make(
        smollm2,
        tmp_path,
        reward=half_teach,
        dynamic_sampling=True,
        policy_loss="kl_cov",
        policy_loss_kwargs={"fraction": 0.1, "scope": "batch"},
        num_iterations=2,
        max_steps=4,
    )
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    calls = count_forwards(trainer)
    before = parameters(trainer)
    trainer.train()
    assert len(rollouts) == 2
    for rollout, output in zip(rollouts, outputs, strict=True):
        assert rollout.rewards.tolist() == [[0.0, 1.0, 0.0, 1.0]] * 2
        texts = trainer.processing_class.batch_decode(output["prompt_ids"])
        assert all(int(text.split("What is ")[1].split()[0]) % 2 == 0 for text in texts)
        # The sampler's log-probabilities have moved with their responses.
        mask = output["completion_mask"].bool()
        difference = (output["old_per_token_logps"] - output["sampling_per_token_logps"])[mask].abs().max()
        assert difference < 1e-2
    # No pass scores rejected responses: one pass per rollout without gradients, one per step with gradients.
    assert calls == {"without_grad": 2, "with_grad": 4}
    entries = [entry for entry in logged(trainer) if "dynamic_sampling/rounds" in entry]
    assert max(entry["dynamic_sampling/rounds"] for entry in entries) > 1
    assert all(entry["policy_loss/frac_gated"] > 0 for entry in logged(trainer))
    assert all(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())


def test_astar_po(smollm2, tmp_path):
    data = DATA.add_column("rewards", [[1.0, 0.0, float(row % 2)] for row in range(len(DATA))])
    options = OPTIONS | VLLM | {"num_generations": 1}
    trainer = AStarPOTrainer(str(smollm2), varied, AStarPOConfig(str(tmp_path), **options), data)
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    calls = count_forwards(trainer)
    before = parameters(trainer)
    trainer.train()
    rollout, output = rollouts[0], outputs[0]
    assert rollout.rewards.shape == (8, 1)
    want = rollout.rewards - rollout.metrics["v_star"]
    assert torch.equal(output["advantages"], want.flatten())
    assert output["ref_per_token_logps"].shape == output["completion_ids"].shape
    # The policy still equals the reference, so its implicit reward is 0.
    assert logged(trainer)[0]["loss"] == pytest.approx(want.pow(2).mean().item(), rel=1e-4)
    assert calls == {"without_grad": 0, "with_grad": 1}  # the reference is a separate model
    assert any(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())


def test_values_are_estimated_by_vllm(smollm2, tmp_path):
    rows = [
        {"prompt": f"What is {number} + 1? Answer with a number.", "answer": str(number + 1)} for number in range(6)
    ]
    Dataset.from_list(rows).to_json(tmp_path / "data.jsonl")
    (tmp_path / "rewards.py").write_text(
        "def found(completions, solution, **kwargs):\n"
        "    return [float(s in c[0]['content']) for c, s in zip(completions, solution)]\n"
    )
    flags = {
        "output_dir": tmp_path / "values",
        "dataset_name": tmp_path / "data.jsonl",
        "model_name_or_path": smollm2,
        "dtype": "float32",
        "reward_funcs": "rewards:found",
        "include_test": "false",
        "num_samples": "3",
        "chunk_prompts": "4",
        "max_completion_length": "16",
        "use_vllm": "true",
        "vllm_kwargs": json.dumps({"enforce_eager": True, "max_model_len": 128}),
    }
    command = [sys.executable, str(ROOT / "examples" / "estimate_values.py")]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    data = load_dataset(str(tmp_path / "values"))["train"]
    rewards = torch.tensor(data["rewards"][:])
    assert rewards.shape == (6, 3)
    assert 0 < rewards.mean() < 1, "SmolLM2 gets some of these right"
    assert (torch.tensor(data["v_star"][:]) >= rewards.mean(dim=1) - 1e-6).all()


def test_evaluation_by_vllm(smollm2, tmp_path):
    rows = [
        {"prompt": f"What is {number} + 1? Answer with a number.", "answer": str(number + 1)} for number in range(6)
    ]
    Dataset.from_list(rows).to_json(tmp_path / "data.jsonl")
    (tmp_path / "rewards.py").write_text(
        "def found(completions, solution, **kwargs):\n"
        "    return [float(s in c[0]['content']) for c, s in zip(completions, solution)]\n"
    )
    flags = {
        "output_dir": tmp_path / "evaluation",
        "dataset_name": tmp_path / "data.jsonl",
        "model_name_or_path": smollm2,
        "dtype": "float32",
        "reward_funcs": "rewards:found",
        "num_samples": "4",
        "chunk_prompts": "4",
        "max_completion_length": "12",
        "temperature": "0.7",
        "use_vllm": "true",
        "vllm_kwargs": json.dumps({"enforce_eager": True, "max_model_len": 128}),
    }
    command = [sys.executable, str(ROOT / "examples" / "evaluate_model.py")]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    numbers = json.loads((tmp_path / "evaluation" / "summary.json").read_text())["data"]
    assert (numbers["num_prompts"], numbers["num_samples"]) == (6, 4)
    assert 0 < numbers["avg"] <= numbers["pass_at_k"]["4"]["mean"], "SmolLM2 gets some of these right"
    assert 0 < numbers["truncated"] < 1
    assert numbers["entropy_is"].startswith("mean surprisal")

    # vLLM's entropy is an estimate of the exact one of transformers.
    table = load_dataset("parquet", data_files=str(tmp_path / "evaluation" / "data" / "records.parquet"))["train"]
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    sampler = TransformersSampler(
        model,
        AutoTokenizer.from_pretrained(smollm2),
        num_samples=50,
        max_new_tokens=12,
        temperature=0.7,
        entropies=True,
    )
    exact = [response for given in sampler(table["prompt"][:], 0) for response in given]
    tokens = sum(len(response.ids) for response in exact)
    entropy = sum(response.entropy * len(response.ids) for response in exact) / tokens
    assert numbers["entropy"] == pytest.approx(entropy, rel=0.35), "the estimate of 24 responses"


def test_a_run_whose_engine_dies_is_resumed(smollm2, tmp_path):
    script = Path(__file__).with_name("dying_engine.py")
    path = os.pathsep.join([str(script.parent), str(script.parents[1])])
    environment = os.environ | {"PYTHONPATH": path}
    environment.pop("MASTER_PORT", None)  # used by the engine of this process
    command = [sys.executable, str(script), str(smollm2), str(tmp_path)]
    died = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert died.returncode == 1
    assert "RuntimeError: the engine is dead" in died.stderr
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]

    resumed = make(smollm2, tmp_path, max_steps=3, save_strategy="steps", save_steps=1)
    before = parameters(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in logged(resumed)] == [1, 2, 3]
    assert all(not torch.equal(value, before[name]) for name, value in parameters(resumed).items())


@pytest.mark.parametrize(
    ("correction", "passes"), [(True, 2), (False, 2)], ids=["TRL scores anyway", "the trainer asks TRL to score"]
)
def test_policy_rewards(smollm2, tmp_path, correction, passes):
    """Policy rewards without a reward function come from the scoring pass of the trainer's model."""
    trainer = make(
        smollm2,
        tmp_path,
        reward=None,
        policy_reward=["rent", "em_rl_sequence", "em_rl_token"],
        advantage_estimator="dr_grpo",
        vllm_importance_sampling_correction=correction,
        max_steps=2,
    )
    calls, rollouts, scores = count_forwards(trainer), keep_rollouts(trainer), []

    def score(output):
        assert ("old_per_token_logps" in output) == correction
        scores.append((*scored_entropy(trainer, output), output["completion_mask"].sum(1)))

    on_outputs(trainer, score)
    before = parameters(trainer)
    trainer.train()
    assert calls == {"without_grad": passes, "with_grad": 2}
    for rollout, (entropy, surprisal, lengths) in zip(rollouts, scores, strict=True):
        assert rollout.reward_names == ("rent", "em_rl_sequence", "em_rl_token")
        want = torch.stack([-entropy, -surprisal * lengths, -entropy * lengths], dim=-1)
        torch.testing.assert_close(rollout.rewards_per_func.flatten(0, 1), want, atol=1e-3, rtol=0)
    assert all(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())


def test_agreement_needs_no_scoring_pass(smollm2, tmp_path):
    trainer = make(
        smollm2,
        tmp_path,
        reward=None,
        trainer_options={"answer_extractor": lambda text: text.strip()[:1] or None},
        policy_reward="self_consistency",
        advantage_estimator="dr_grpo",
        vllm_importance_sampling_correction=False,
        dynamic_sampling=True,
        dynamic_sampling_kwargs={"max_rounds": 2, "exhausted": "keep"},
        log_completions=True,
    )
    calls, rollouts = count_forwards(trainer), keep_rollouts(trainer)
    trainer.train()
    assert calls == {"without_grad": 0, "with_grad": 1}
    first = [completion[0]["content"].strip()[:1] for completion in completions_table(trainer)["completion"]]
    groups = [first[start : start + 4] for start in range(0, len(first), 4)]
    want = [group.count(letter) / 4 if letter else 0.0 for group in groups for letter in group]
    assert rollouts[0].rewards.flatten().tolist() == want


@pytest.mark.parametrize(("correction", "passes"), [(True, 1), (False, 1)], ids=["TRL scores", "on request"])
def test_gtpo(smollm2, tmp_path, correction, passes):
    """The entropies of all tokens come from one scoring pass of the trainer's model."""
    trainer = make(
        smollm2,
        tmp_path,
        reward=half_teach,
        advantage_estimator="gtpo",
        vllm_importance_sampling_correction=correction,
    )
    calls, rollouts, outputs, entropies = count_forwards(trainer), keep_rollouts(trainer), keep_outputs(trainer), []
    on_outputs(trainer, lambda output: entropies.append(scored_entropy(trainer, output)[0]))
    trainer.train()
    (rollout,), (output,) = rollouts, outputs
    assert calls == {"without_grad": passes, "with_grad": 1}
    mean = rollout.entropies.sum(dim=-1) / rollout.mask.sum(dim=-1)
    torch.testing.assert_close(mean.flatten(), entropies[0], atol=1e-4, rtol=0)
    want = gtpo_advantage(rollout.rewards, rollout.entropies, rollout.mask)
    assert torch.equal(output["advantages"], want.flatten(0, 1))
    assert output["advantages"].abs().max() > 0


def test_a_policy_reward_with_dynamic_sampling_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"dynamic_sampling=True with a policy_reward that reads \['entropies'\]"):
        make("a-model-that-does-not-exist", tmp_path, policy_reward="rent", dynamic_sampling=True)


def test_a_controller_moves_the_temperature_of_the_engine(smollm2, tmp_path):
    """At every temperature the log-probabilities of the engine equal those of TRL's scoring pass."""
    options = {"controller": {"e3_temperature": {"target_entropy": 8.0, "init_steps": 0}}, "learning_rate": 0.0}
    trainer = make(smollm2, tmp_path, max_steps=3, **options)
    outputs, temperatures, generate = keep_outputs(trainer), [], trainer.vllm_generation.generate

    def keep(*args, **kwargs):
        temperatures.append(trainer.vllm_generation.temperature)
        return generate(*args, **kwargs)

    trainer.vllm_generation.generate = keep
    trainer.train()
    assert temperatures == [entry["controller/temperature"] for entry in logged(trainer)]
    assert temperatures[0] == 1.0 and temperatures[2] > temperatures[1] > 1.1
    for output in outputs:
        mask = output["completion_mask"].bool()
        difference = (output["old_per_token_logps"] - output["sampling_per_token_logps"])[mask]
        assert difference.abs().max() < 1e-2

"""CANON on the real colocated vLLM engine with a pretrained language model."""

import pytest
import torch
from datasets import Dataset
from observe import count_forwards, keep_outputs, keep_rollouts, on_outputs, scored_entropy
from toy import OPTIONS, logged, parameters

from canon_trl import CANONConfig, CANONTrainer, requires_metrics
from canon_trl.advantages import canon_advantage, dr_grpo_advantage

DATA = Dataset.from_dict(
    {"prompt": [[{"role": "user", "content": f"What is {number} + {number + 1}?"}] for number in range(8)]}
)
VLLM = {
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_max_model_length": 128,
    "max_completion_length": 16,
    "model_init_kwargs": {"dtype": "float32"},
    "max_steps": 1,
    "learning_rate": 1e-4,
}


def varied(completions, **kwargs):
    return [float(len(completion[0]["content"]) % 3) / 2 for completion in completions]


def make(model, folder, trainer_options=None, reward=varied, **options):
    config = CANONConfig(str(folder), **(OPTIONS | VLLM | options))
    return CANONTrainer(str(model), reward, config, DATA, **(trainer_options or {}))


@pytest.fixture(scope="module")
def run(smollm2, tmp_path_factory):
    """Train CANON by entropy on two rollouts."""
    trainer = make(smollm2, tmp_path_factory.mktemp("run"), max_steps=2)
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    calls = count_forwards(trainer)
    before = parameters(trainer)
    entropies = []
    on_outputs(trainer, lambda output: entropies.append(scored_entropy(trainer, output)))
    trainer.train()
    return trainer, rollouts, outputs, calls, before, entropies


def test_entropy_comes_from_trls_own_scoring_pass(run):
    _, rollouts, _, calls, _, entropies = run
    # Per rollout only TRL's pass for the importance-sampling correction; per step one pass with gradients.
    assert calls == {"without_grad": 2, "with_grad": 2}
    for rollout, (entropy, _) in zip(rollouts, entropies, strict=True):
        torch.testing.assert_close(rollout.metrics["entropy"].flatten(), entropy, atol=1e-4, rtol=0)


def test_advantages_and_log(run):
    trainer, rollouts, outputs, *_ = run
    for rollout, output in zip(rollouts, outputs, strict=True):
        want = canon_advantage(rollout.rewards, rollout.metrics["entropy"])
        assert torch.equal(output["advantages"], want.flatten())
    assert [entry["canon/mu"] for entry in logged(trainer)] == [1.0, 1.0]
    gaps = [entry["canon/metric_higher"] - entry["canon/metric_lower"] for entry in logged(trainer)]
    assert min(gaps) > 0


def test_every_parameter_moves(run):
    trainer, *_, before, _ = run
    unmoved = [name for name, value in parameters(trainer).items() if torch.equal(value, before[name])]
    assert not unmoved


def test_weights_reach_the_sampler(run, smollm2):
    """The second rollout comes from the updated weights: trainer and sampler agree on its log-probabilities."""
    trainer, _, outputs, _, before, _ = run
    output = outputs[1]
    mask = output["completion_mask"].bool()
    difference = (output["old_per_token_logps"] - output["sampling_per_token_logps"])[mask].abs().max()
    trained = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.load_state_dict(before, strict=False)
    _, stale_surprisal = scored_entropy(trainer, output)
    trainer.model.load_state_dict(trained)
    sampled = (-output["sampling_per_token_logps"] * mask).sum(1) / mask.sum(1)
    assert difference < 1e-2
    assert (stale_surprisal - sampled).abs().max() > 10 * difference


@requires_metrics("surprisal", "length")
def reading_estimator(rollout):
    return dr_grpo_advantage(rollout.rewards)


def test_surprisal_uses_the_log_probs_of_the_sampler(smollm2, tmp_path):
    trainer = make(smollm2, tmp_path, {"advantage_estimator": reading_estimator})
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    mask = outputs[0]["completion_mask"]
    want = -(outputs[0]["sampling_per_token_logps"] * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(rollouts[0].metrics["surprisal"].flatten(), want, atol=1e-6, rtol=1e-6)
    assert torch.equal(rollouts[0].lengths.flatten(), mask.sum(1))


def test_surprisal_uses_the_log_probs_of_the_policy_if_vllm_truncates_the_distribution(smollm2, tmp_path):
    """With `top_k=1` the sampler is certain of its token but the policy is not, as with transformers."""
    trainer = make(smollm2, tmp_path, {"advantage_estimator": reading_estimator}, top_k=1)
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    mask = outputs[0]["completion_mask"]
    assert (outputs[0]["sampling_per_token_logps"] * mask).abs().max() < 1e-4
    want = -(outputs[0]["old_per_token_logps"] * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(rollouts[0].metrics["surprisal"].flatten(), want, atol=1e-6, rtol=1e-6)
    assert want.min() > 0.01


def test_without_importance_sampling_correction_the_trainer_runs_its_own_pass(smollm2, tmp_path):
    trainer = make(smollm2, tmp_path, vllm_importance_sampling_correction=False)
    rollouts = keep_rollouts(trainer)
    calls = count_forwards(trainer)
    trainer.train()
    assert calls == {"without_grad": 1, "with_grad": 1}
    assert (rollouts[0].metrics["entropy"] > 0).all()


def test_vllm_with_recorded_entropies_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="entropy_source='generation' does not work with use_vllm"):
        make("a-model-that-does-not-exist", tmp_path, entropy_source="generation")

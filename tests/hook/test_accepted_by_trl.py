"""Reward models, streams, environments and adapters, which GRPOTrainer accepts, still work under the hook."""

from importlib.resources import files

import pytest
import torch
import yaml
from observe import completions_table, keep_rollouts
from peft import LoraConfig
from toy import TASK, logged, make_trainer, prompts
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification, TrainerCallback
from trl import TrlParser

from canon_trl import CANONConfig
from canon_trl.advantages import canon_advantage


@pytest.fixture
def reward_model(tmp_path):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 8}
    config = Qwen3Config(
        vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes, **heads
    )
    folder = tmp_path / "judge"
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_reward_model_together_with_a_function(tmp_path, reward_model):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": [reward_model, TASK.reward]},
        accuracy_reward="accuracy",
        canon_mu_schedule="inter_to_intra",
        max_steps=1,
    )
    rollouts = keep_rollouts(trainer)
    trainer.train()
    rollout = rollouts[0]
    assert rollout.reward_names == ("judge", "accuracy")
    judged, correct = rollout.rewards_per_func.unbind(-1)
    assert judged.unique().numel() > 2 and set(correct.flatten().tolist()) <= {0.0, 1.0}
    assert float(rollout.accuracy) == correct.mean().item()


def test_an_unknown_accuracy_reward_with_a_reward_model(tmp_path, reward_model):
    with pytest.raises(ValueError, match=r"accuracy_reward='no' must be one of the reward functions \['judge'\]"):
        make_trainer(tmp_path, trainer_options={"reward_funcs": reward_model}, accuracy_reward="no")


def test_streamed_prompts(tmp_path):
    """A run on a stream also resumes."""
    options = {"trainer_options": {"train_dataset": prompts(64).to_iterable_dataset()}, "num_iterations": 2}
    whole = make_trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=1, **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", max_steps=4, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert logged(resumed) == logged(whole)


def test_several_evaluation_sets(tmp_path):
    sets = {"small": TASK.dataset("test", 2), "large": TASK.dataset("test", 4)}
    trainer = make_trainer(tmp_path, trainer_options={"eval_dataset": sets}, num_generations_eval=4)
    scores = trainer.evaluate()
    assert {f"eval_{name}_loss" for name in sets} <= scores.keys()


def test_callbacks_see_the_numbers_of_canon(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(logs)

    make_trainer(tmp_path, trainer_options={"callbacks": [Watch()]}, max_steps=1).train()
    assert seen[0]["canon/mu"] == 1.0


class Counter:
    """An environment that owns the reward: 1 for every second rollout."""

    made = 0

    def __init__(self):
        Counter.made += 1
        self.number = Counter.made

    def reset(self, **kwargs):
        return None

    def get_reward(self):
        return float(self.number % 2)


def test_environment_that_owns_the_reward(tmp_path):
    from datasets import Dataset

    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    tokenizer.chat_template = (files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": "1+2+3="}]] * 8})
    given = {
        "reward_funcs": None,
        "train_dataset": data,
        "processing_class": tokenizer,
        "environment_factory": Counter,
    }
    trainer = make_trainer(tmp_path, trainer_options=given, log_completions=True, max_steps=1)
    rollouts = keep_rollouts(trainer)
    trainer.train()
    assert rollouts[0].reward_names == ("Counter",)
    want = canon_advantage(rollouts[0].rewards, rollouts[0].metrics["entropy"])
    assert completions_table(trainer)["advantage"] == want.flatten().tolist()
    with pytest.raises(ValueError, match=r"accuracy_reward='no' must be one of the reward functions \['Counter'\]"):
        make_trainer(tmp_path, trainer_options=given, accuracy_reward="no")


def test_lora(tmp_path):
    trainer = make_trainer(tmp_path, trainer_options={"peft_config": LoraConfig(r=2, target_modules=["q_proj"])})
    trainable = {name.split(".")[-3] for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trainable == {"lora_A", "lora_B"}
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name]) == ("lora_" not in name), name


def gradient(folder, **options):
    """The gradient of the first step, which is on policy: every ratio is 1."""
    trainer = make_trainer(folder, max_steps=1, max_grad_norm=0.0, **options)
    gradients = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))

    trainer.add_callback(Watch())
    torch.manual_seed(3)
    trainer.train()
    return gradients[0]


def test_cispo_on_policy_is_the_policy_gradient(tmp_path):
    """Its cap bounds the ratio, not the excess over 1: with 0.28 the gradient would be 0.28 times this one."""
    want = gradient(tmp_path, loss_type="dapo")  # divides by the same count
    assert want.abs().max() > 0
    torch.testing.assert_close(gradient(tmp_path, loss_type="cispo"), want, rtol=1e-4, atol=1e-7)
    capped = gradient(tmp_path, loss_type="cispo", epsilon_high=0.28)  # an explicit value is kept
    torch.testing.assert_close(capped, 0.28 * want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, 0.28),
        ({"loss_type": "dapo"}, 0.28),
        ({"loss_type": "cispo"}, 5.0),
        ({"loss_type": "sapo"}, None),
        ({"loss_type": "vespo"}, None),
        ({"loss_type": "luspo", "importance_sampling_level": "sequence"}, None),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, None),
        ({"epsilon_high": 0.3}, 0.3),
        ({"epsilon_high": None}, None),
        ({"epsilon_high": None, "loss_type": "sapo"}, None),
        ({"epsilon_high": None, "policy_loss": "kl_cov", "num_iterations": 2}, None),
        ({"epsilon_high": 4.0, "loss_type": "cispo"}, 4.0),
        ({"epsilon_high": None, "loss_type": "cispo"}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("source", ["python", "yaml"])
def test_the_default_upper_clip_depends_on_the_loss(tmp_path, options, want, source):
    options = {"output_dir": str(tmp_path), "bf16": False, "use_cpu": True, "report_to": []} | options
    if source == "python":
        made = CANONConfig(**options)
    else:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(options))
        (made,) = TrlParser((CANONConfig,)).parse_args_and_config(["--config", str(recipe)])
    assert made.epsilon_high == want


@pytest.mark.parametrize(("given", "bound"), [({}, 0.28), ({"epsilon_high": None}, 0.2), ({"epsilon_high": 0.3}, 0.3)])
def test_clip_cov_clips_where_the_loss_does(tmp_path, given, bound):
    trainer = make_trainer(tmp_path, policy_loss="clip_cov", num_iterations=2, max_steps=1, **given)
    seen = []
    trainer.on_tokens(seen.append)
    trainer.train()
    assert [tokens.clip for tokens in seen] == [(0.2, bound)]


def test_no_clipping_of_the_gradient(tmp_path):
    runs = []
    for norm in (0.0, -1.0):
        trainer = make_trainer(tmp_path, max_grad_norm=norm, max_steps=2, learning_rate=0.1)
        torch.manual_seed(3)
        trainer.train()
        runs.append(logged(trainer))
    assert runs[0] == runs[1]

"""What GRPOTrainer accepts beside functions and datasets in memory still works under the hook."""

from importlib.resources import files

import pytest
import torch
from observe import keep_rollouts
from peft import LoraConfig
from toy import TASK, logged, make_trainer, prompts
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification, TrainerCallback

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


def test_reward_model_beside_a_function(tmp_path, reward_model):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": [reward_model, TASK.reward]},
        accuracy_reward="accuracy",
        canon_mu_schedule="inter_to_intra",
        max_steps=1,
    )
    rollouts, _ = keep_rollouts(trainer)
    trainer.train()
    rollout = rollouts[0]
    assert rollout.reward_names == ("judge", "accuracy")
    judged, correct = rollout.rewards_per_func.unbind(-1)
    assert judged.unique().numel() > 2 and set(correct.flatten().tolist()) <= {0.0, 1.0}
    assert float(rollout.accuracy) == correct.mean().item()


def test_an_unknown_accuracy_reward_beside_a_reward_model(tmp_path, reward_model):
    with pytest.raises(ValueError, match=r"accuracy_reward='no' must be one of the reward functions \['judge'\]"):
        make_trainer(tmp_path, trainer_options={"reward_funcs": reward_model}, accuracy_reward="no")


def test_streamed_prompts(tmp_path):
    """And they can be resumed like those in memory."""
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
    trainer = make_trainer(
        tmp_path,
        trainer_options={
            "reward_funcs": None,
            "train_dataset": data,
            "processing_class": tokenizer,
            "environment_factory": Counter,
        },
        max_steps=1,
    )
    rollouts, _ = keep_rollouts(trainer)
    trainer.train()
    assert rollouts[0].reward_names == ("Counter",)
    want = canon_advantage(rollouts[0].rewards, rollouts[0].metrics["entropy"])
    assert list(trainer._logs["advantages"]) == want.flatten().tolist()


def test_lora(tmp_path):
    trainer = make_trainer(tmp_path, trainer_options={"peft_config": LoraConfig(r=2, target_modules=["q_proj"])})
    trainable = {name.split(".")[-3] for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trainable == {"lora_A", "lora_B"}
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name]) == ("lora_" not in name), name

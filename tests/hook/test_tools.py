"""TRL's tool loop under the hook: what a tool wrote counts in no metric."""

from importlib.resources import files

import pytest
import torch
from datasets import Dataset
from observe import keep_outputs, keep_rollouts
from toy import OPTIONS, byte_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from canon_trl import CANONConfig, CANONTrainer, requires_metrics
from canon_trl.advantages import dr_grpo_advantage

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


@pytest.fixture
def tokenizer():
    """Bytes, and the special tokens of Qwen3's chat template."""
    tokenizer = byte_tokenizer("<|im_start|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    tokenizer.chat_template = (files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    return tokenizer


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8, **sizes)
    return Qwen3ForCausalLM(config)


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.

    Returns:
        Their sum.
    """
    return a + b


def call_the_tool(prompts, trainer):
    tokenizer = trainer.processing_class
    texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts]
    call = tokenizer(CALL)["input_ids"] + [tokenizer.eos_token_id]
    return {
        "prompt_ids": [tokenizer(text)["input_ids"] for text in texts],
        "completion_ids": [list(call) for _ in prompts],
        "logprobs": None,
    }


@requires_metrics("entropy", "length")
def reading_estimator(rollout):
    return dr_grpo_advantage(rollout.rewards)


def graded(completions, **kwargs):
    return [float(index % 4) for index in range(len(completions))]


def test_tool_loop(tmp_path, tokenizer, model):
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": "1+2?"}]] * 8})
    options = {"max_steps": 1, "max_completion_length": 160, "max_tool_calling_iterations": 1, "learning_rate": 0.0}
    trainer = CANONTrainer(
        model,
        graded,
        CANONConfig(str(tmp_path), **(OPTIONS | options)),
        data,
        processing_class=tokenizer,
        tools=[add],
        rollout_func=call_the_tool,
        advantage_estimator=reading_estimator,
    )
    rollouts, _ = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    output, rollout = outputs[0], rollouts[0]
    written = output["completion_mask"].sum(dim=1)
    by_model = (output["completion_mask"] * output["tool_mask"]).sum(dim=1)
    assert trainer.state.log_history[0]["tools/call_frequency"] == 1.0
    assert (by_model < written).all(), "the tool wrote something"
    assert torch.equal(rollout.lengths.flatten(), by_model)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    width = output["completion_ids"].shape[1]
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1]
    token_entropy = torch.distributions.Categorical(logits=logits).entropy()
    want = (token_entropy * output["completion_mask"] * output["tool_mask"]).sum(dim=1) / by_model
    torch.testing.assert_close(rollout.metrics["entropy"].flatten(), want, atol=2e-5, rtol=0)

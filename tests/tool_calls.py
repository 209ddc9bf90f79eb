"""A small model with Qwen3's chat template, a tool, and responses that call the tool."""

from importlib.resources import files
from typing import Any

import torch
from toy import byte_tokenizer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def tool_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte tokenizer with the special tokens of Qwen3's chat template."""
    tokenizer = byte_tokenizer("<|im_start|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    tokenizer.chat_template = (files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    return tokenizer


def tool_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
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


def call_the_tool(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """A `rollout_func` whose responses each call [`add`] once."""
    tokenizer = trainer.processing_class
    texts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts]
    call = tokenizer(CALL)["input_ids"] + [tokenizer.eos_token_id]
    return {
        "prompt_ids": [tokenizer(text)["input_ids"] for text in texts],
        "completion_ids": [list(call) for _ in prompts],
        "logprobs": None,
    }

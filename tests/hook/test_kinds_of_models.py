"""The first method of each stage with LoRA, bf16, gradient checkpointing, tools and a vision-language model."""

import math
from typing import Any

import pytest
import torch
from datasets import Dataset
from images import vision_model, vision_processor
from peft import LoraConfig
from PIL import Image
from residents import FIRST
from tool_calls import add, call_the_tool, tool_model, tool_tokenizer
from toy import OPTIONS, TASK, base_model, logged, parameters, prompts
from transformers import AutoTokenizer

from canon_trl import CANONConfig, CANONTrainer

REFUSED: dict[tuple[str, str], str] = {}


def alternating(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(index % 2) for index in range(len(completions))]


def on_the_task(**options: Any) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    return {"model": base_model(), "train_dataset": prompts(), "processing_class": tokenizer, **options}


def with_tools() -> dict[str, Any]:
    tokenizer = tool_tokenizer()
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": "1+2?"}]] * 8})
    options = {"max_completion_length": 160, "max_tool_calling_iterations": 1}
    return {
        "model": tool_model(tokenizer),
        "train_dataset": data,
        "processing_class": tokenizer,
        "tools": [add],
        "rollout_func": call_the_tool,
        "options": options,
    }


def with_images() -> dict[str, Any]:
    processor = vision_processor()
    columns = {
        "prompt": [[{"role": "user", "content": "colour?"}]] * 2,
        "image": [Image.new("RGB", (16, 16), colour) for colour in [(255, 0, 0), (0, 0, 255)]],
    }
    return {
        "model": vision_model(processor),
        "train_dataset": Dataset.from_dict(columns),
        "processing_class": processor,
        "options": {"max_completion_length": 6},
    }


KINDS = {
    "LoRA": lambda: on_the_task(peft_config=LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)),
    "bf16": lambda: on_the_task(options={"bf16": True}),
    "gradient checkpointing": lambda: on_the_task(options={"gradient_checkpointing": True}),
    "tools": with_tools,
    "images": with_images,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", FIRST)
def test_it_trains_or_is_rejected_with_the_reason(tmp_path, field, kind):
    parts = KINDS[kind]()
    options = OPTIONS | {"max_steps": 2, "num_iterations": 2, field: FIRST[field]} | parts.pop("options", {})
    if (field, kind) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[field, kind]):
            CANONTrainer(reward_funcs=alternating, args=CANONConfig(str(tmp_path), **options), **parts)
        return
    trainer = CANONTrainer(reward_funcs=alternating, args=CANONConfig(str(tmp_path), **options), **parts)
    before = parameters(trainer)
    trainer.train()
    entries = logged(trainer)
    assert len(entries) == 2
    assert all(math.isfinite(entry["loss"]) for entry in entries)
    moved = {name for name, value in parameters(trainer).items() if not torch.equal(value, before[name])}
    assert moved
    assert kind != "LoRA" or all("lora" in name for name in moved)

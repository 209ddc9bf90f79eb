"""A real pretrained language model: LoRA on SmolLM2-135M-Instruct."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from smollm2 import save_smollm2
from toy import OPTIONS
from transformers import AutoModelForCausalLM, AutoTokenizer

from canon_trl import CANONConfig, CANONTrainer

QUESTIONS = ["What is 2 + 3?", "What is the capital of France?", "Name a colour.", "What is 7 - 4?"]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    return save_smollm2(tmp_path_factory.mktemp("models") / "SmolLM2-135M-Instruct")


def brevity(completions, **kwargs):
    return [1.0 / (1 + len(completion[0]["content"])) for completion in completions]


@pytest.mark.slow
def test_lora(smollm2, tmp_path):
    from datasets import Dataset

    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": question}] for question in QUESTIONS]})
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "max_completion_length": 16, "learning_rate": 1e-3}
    config = CANONConfig(str(tmp_path), **(OPTIONS | options), model_init_kwargs={"dtype": "float32"})
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
    trainer = CANONTrainer(str(smollm2), brevity, config, data, peft_config=lora)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    entropies = [entry["canon/metric_higher"] for entry in trainer.state.log_history if "canon/mu" in entry]
    assert len(entropies) == 2 and all(0 < entropy < 10.8 for entropy in entropies)  # ln of the vocabulary: 10.8

    trainer.save_model(str(tmp_path / "adapter"))
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    prompt = tokenizer.apply_chat_template(data[1]["prompt"], add_generation_prompt=True, return_tensors="pt")
    inputs = prompt if isinstance(prompt, torch.Tensor) else prompt["input_ids"]
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(reloaded(inputs).logits, trainer.model(inputs).logits, atol=1e-3, rtol=1e-3)
        written = reloaded.generate(inputs, max_new_tokens=8, do_sample=False)
    assert len(tokenizer.decode(written[0, inputs.shape[1] :], skip_special_tokens=True).strip()) > 0

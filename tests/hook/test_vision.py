"""A vision-language model: prompts with images, scored by a pass of the hook's own and while generating."""

import pytest
import torch
from datasets import Dataset
from images import vision_model, vision_processor
from observe import keep_outputs, keep_rollouts
from PIL import Image
from toy import OPTIONS

from canon_trl import CANONConfig, CANONTrainer


@pytest.fixture
def processor():
    return vision_processor()


@pytest.fixture
def model(processor):
    return vision_model(processor)


def graded(completions, **kwargs):
    return [float(index % 4) for index in range(len(completions))]


def test_images_and_both_sources_of_entropy(tmp_path, processor, model):
    colours = [(255, 0, 0), (0, 0, 255)]
    data = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": "colour?"}]] * 2,
            "image": [Image.new("RGB", (16, 16), colour) for colour in colours],
        }
    )
    entropies = {}
    for source in ("generation", "forward"):
        config = CANONConfig(
            str(tmp_path), **(OPTIONS | {"max_steps": 1, "learning_rate": 0.0}), entropy_source=source
        )
        trainer = CANONTrainer(model, graded, config, data, processing_class=processor)
        rollouts = keep_rollouts(trainer)
        outputs = keep_outputs(trainer)
        trainer.train()
        assert "pixel_values" in outputs[0]
        entropies[source] = rollouts[0].metrics["entropy"]
    torch.testing.assert_close(entropies["generation"], entropies["forward"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("source", ["generation", "forward"])
def test_images_and_a_policy_reward(tmp_path, processor, model, source):
    """Also by the pass that TRL is asked for, before the rewards, which is handed the images."""
    data = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": "colour?"}]] * 2,
            "image": [Image.new("RGB", (16, 16), colour) for colour in [(255, 0, 0), (0, 0, 255)]],
        }
    )
    config = CANONConfig(str(tmp_path), **(OPTIONS | {"max_steps": 2}), policy_reward="rent", entropy_source=source)
    trainer = CANONTrainer(model, None, config, data, processing_class=processor)
    rollouts, entropies = [], []
    trainer.on_rollout(lambda rollout, advantages: rollouts.append(rollout))
    generate = trainer._generate_and_score_completions

    def score_now(inputs):
        output = generate(inputs)
        width = output["completion_ids"].shape[1]
        handed = {name: output[name] for name in ("pixel_values",)}
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=attention, **handed).logits[:, -width - 1 : -1]
        mask = output["completion_mask"]
        entropy = torch.distributions.Categorical(logits=logits.float()).entropy()
        entropies.append((entropy * mask).sum(dim=1) / mask.sum(dim=1))
        return output

    trainer._generate_and_score_completions = score_now
    trainer.train()
    assert len(rollouts) == 2
    for rollout, entropy in zip(rollouts, entropies, strict=True):
        torch.testing.assert_close(rollout.rewards.flatten(), -entropy, atol=2e-5, rtol=0)


def test_images_come_along_with_dynamic_sampling(tmp_path, processor, model):
    """Groups about a red image teach, those about a blue one are replaced."""
    data = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": "colour?"}]] * 8,
            "image": [Image.new("RGB", (16, 16), (255, 0, 0) if row % 2 else (0, 0, 255)) for row in range(8)],
        }
    )

    def red_teaches(completions, image, **kwargs):
        red = [picture.getpixel((0, 0))[0] == 255 for picture in image]
        return [float(index % 2) if teaches else 0.0 for index, teaches in enumerate(red)]

    options = OPTIONS | {"max_steps": 1, "per_device_train_batch_size": 16, "dynamic_sampling": True}
    config = CANONConfig(str(tmp_path), **options)
    trainer = CANONTrainer(model, red_teaches, config, data, processing_class=processor)
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    trainer.train()
    assert rollouts[0].rewards.tolist() == [[0.0, 1.0, 0.0, 1.0]] * 4
    pixels = outputs[0]["pixel_values"]
    assert len(pixels) == 16
    assert (pixels[:, 0].mean(dim=(1, 2)) > pixels[:, 2].mean(dim=(1, 2))).all(), "all of them red"
    assert trainer.state.log_history[0]["dynamic_sampling/rounds"] > 1

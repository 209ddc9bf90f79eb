"""A vision-language model: prompts with images, scored by a separate pass or while generating."""

import pytest
import torch
from datasets import Dataset
from images import vision_model, vision_processor
from observe import keep_outputs, keep_rollouts, keep_tokens, on_outputs
from PIL import Image
from toy import OPTIONS

from canon_trl import CANONConfig, CANONTrainer
from canon_trl.hook.whole_groups import deal_by_group
from canon_trl.trl_release import RELEASE

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def processor():
    return vision_processor()


@pytest.fixture
def model(processor):
    return vision_model(processor)


def graded(completions, **kwargs):
    return [float(index % 4) for index in range(len(completions))]


def prompts_with_images(colours):
    """A prompt about a picture of each colour."""
    prompt = [{"role": "user", "content": "colour?"}]
    images = [Image.new("RGB", (16, 16), colour) for colour in colours]
    return Dataset.from_dict({"prompt": [prompt] * len(images), "image": images})


def test_images_and_both_sources_of_entropy(tmp_path, processor, model):
    data = prompts_with_images([RED, BLUE])
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


def full_logits(model, output):
    """The logits of the responses in TRL's output, by an independent pass with their images."""
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=attention, pixel_values=output["pixel_values"]).logits
    return logits[:, -output["completion_ids"].shape[1] - 1 : -1].float()


@pytest.mark.parametrize("source", ["generation", "forward"])
def test_images_and_a_policy_reward(tmp_path, processor, model, source):
    """Also where the hook asks TRL for a scoring pass before the rewards, which receives the images."""
    data = prompts_with_images([RED, BLUE])
    config = CANONConfig(str(tmp_path), **(OPTIONS | {"max_steps": 2}), policy_reward="rent", entropy_source=source)
    trainer = CANONTrainer(model, None, config, data, processing_class=processor)
    rollouts, entropies = keep_rollouts(trainer), []

    def score(output):
        mask = output["completion_mask"]
        entropy = torch.distributions.Categorical(logits=full_logits(model, output)).entropy()
        entropies.append((entropy * mask).sum(dim=1) / mask.sum(dim=1))

    on_outputs(trainer, score)
    trainer.train()
    assert len(rollouts) == 2
    for rollout, entropy in zip(rollouts, entropies, strict=True):
        torch.testing.assert_close(rollout.rewards.flatten(), -entropy, atol=2e-5, rtol=0)


@pytest.mark.skipif(RELEASE < (1, 11), reason="TRL counts images by rows")
def test_images_stay_with_their_groups_in_dynamic_sampling(tmp_path, processor, model):
    """Groups about a red image teach; those about a blue one are replaced."""
    data = prompts_with_images([BLUE, RED] * 4)

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
    assert (pixels[:, 0].mean(dim=(1, 2)) > pixels[:, 2].mean(dim=(1, 2))).all(), "all images must be red"
    assert trainer.state.log_history[0]["dynamic_sampling/rounds"] > 1


def test_images_stay_with_their_responses_in_whole_groups(tmp_path, processor, model):
    """Each micro-batch scores its responses with the images of their prompts."""
    options = {"max_steps": 1, "learning_rate": 0.0, "gradient_accumulation_steps": 2, "policy_loss": "disco"}
    config = CANONConfig(str(tmp_path), **(OPTIONS | options))
    right = [lambda completions, **kwargs: [float(row % 4 == 0) for row in range(len(completions))]]
    data = prompts_with_images([RED, GREEN, BLUE, WHITE])
    trainer = CANONTrainer(model, right, config, data, processing_class=processor)
    outputs, micro_batches = keep_outputs(trainer), keep_tokens(trainer)
    trainer.train()
    (output,) = outputs
    log_probs, mixed = [
        full_logits(model, output | {"pixel_values": pixels}).log_softmax(dim=-1)
        for pixels in (output["pixel_values"], output["pixel_values"].roll(4, dims=0))
    ]
    picked = output["completion_ids"].unsqueeze(-1)
    want, others = log_probs.gather(-1, picked).squeeze(-1), mixed.gather(-1, picked).squeeze(-1)
    assert (want - others).abs().max() > 1e-3, "the images must matter"
    assert len(micro_batches) == 2
    for tokens in micro_batches:
        groups = tokens.response.view(2, 4)
        assert torch.equal(groups, groups[:, :1] + torch.arange(4)) and (groups[:, 0] % 4 == 0).all()
        rows = want[tokens.response][:, : tokens.mask.shape[1]]
        torch.testing.assert_close(tokens.log_probs * tokens.mask, rows * tokens.mask, atol=2e-5, rtol=0)


def test_images_of_different_sizes_are_dealt_with_their_responses():
    """Some models keep the patches of all images in one tensor, here 1 + response of them per image."""
    order = [[3, 0], [2, 1]]
    batches = []
    for responses in order:
        patches = torch.cat([torch.full((1 + response, 2), float(response)) for response in responses])
        batches.append(
            {
                "response": torch.tensor(responses),
                "pixel_values": patches,
                "image_grid_thw": torch.tensor([[1, 1, 1 + response] for response in responses]),
                "num_images": [1, 1],
                "num_items_in_batch": torch.tensor(4),
                "ref_per_token_logps": None,
            }
        )
    first, second = deal_by_group(batches, group_size=2)
    assert (first["response"].tolist(), second["response"].tolist()) == ([2, 3], [0, 1])
    assert first["pixel_values"][:, 0].tolist() == [2.0] * 3 + [3.0] * 4
    assert second["pixel_values"][:, 0].tolist() == [0.0, 1.0, 1.0]
    assert [batch["image_grid_thw"][:, 2].tolist() for batch in (first, second)] == [[3, 4], [1, 2]]
    assert all(batch["ref_per_token_logps"] is None and batch["num_items_in_batch"] == 4 for batch in (first, second))

"""A small vision-language model and prompts with images."""

import torch
from toy import byte_tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen3Config,
)

TEMPLATE = """
{%- for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}
{%- endif %}{% endfor %}"""


def vision_processor() -> LlavaProcessor:
    tokenizer = byte_tokenizer("<image>")
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def vision_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **sizes)
    vocabulary = len(processor.tokenizer)
    text = Qwen3Config(vocab_size=vocabulary, num_key_value_heads=1, head_dim=8, **sizes)
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token)
    )

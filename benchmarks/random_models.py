"""Language models of any size without a download: random weights, and the tokenizer of the embedded task.

Most of the vocabulary has no token in the tokenizer and decodes to nothing; it only makes the model as expensive as a
real one.
"""

from pathlib import Path

import torch
from step_time import TASK
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

EMBEDDED = "embedded"
SHAPES = {
    "13M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "vocab_size": 32_000},
    "200M": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12, "vocab_size": 151_936},
}
HEAD = 64


def model_folder(name: str, folder: Path = Path("outputs/benchmarks")) -> str:
    """The folder of the embedded model, or of the random model with that name in `SHAPES`, created if missing."""
    if name == EMBEDDED:
        return str(TASK.model_path)
    path = folder / name
    if not (path / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
        heads = SHAPES[name]["hidden_size"] // HEAD
        special = {part: getattr(tokenizer, part) for part in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = Qwen3Config(
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=HEAD,
            tie_word_embeddings=True,
            max_position_embeddings=4096,
            **SHAPES[name],
            **special,
        )
        torch.manual_seed(0)
        tokenizer.save_pretrained(path)
        Qwen3ForCausalLM(config).save_pretrained(path)
    return str(path)

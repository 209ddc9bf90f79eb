"""Make a task's base model: `python -m canon_trl.tasks.pretrain --task NAME --output DIR [--seed 0 --steps 1100 ...]`.

Supervised training from scratch on imperfect solutions in several styles gives a model that samples all styles and is
sometimes right, so reinforcement learning can improve it. The same seed and number of threads on the same machine give
the same bytes; with another number of threads, sums round differently. The arithmetic model was made with two threads,
the others with one. `--start arithmetic --learning_rate 2e-3 --round` made the hint model with `--steps 260` and the
chains model with `--steps 450`.
"""

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_cosine_schedule_with_warmup,
)

from canon_trl.tasks import TASKS, Task

BATCH_SIZE = 128
LEARNING_RATE = 3e-3
MAX_LENGTH = 128  # tokens; the longest prompt with solution has 44, in the arithmetic task
MAX_NEW_TOKENS = 40
IGNORED_LABEL = -100  # transformers' loss ignores it


def build_tokenizer(task: Task) -> PreTrainedTokenizerFast:
    """Build the tokenizer: one token per character, with padding on the left for generation."""
    symbols = ["<pad>", "<bos>", "<eos>", "<unk>", *task.symbols]
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # without it, decoding puts spaces between characters
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=MAX_LENGTH,
        # The default also has token_type_ids, which the model's generate() rejects.
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Build the untrained model, 429k float32 parameters (with 21 symbols), from torch's current random state."""
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        intermediate_size=384,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        dtype="float32",
        **special,
    )
    model = Qwen3ForCausalLM(config)
    # Sample from the model's own distribution, with every filter switched off.
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **special)
    return model


def draw_batch(
    task: Task, rng: random.Random, tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one batch of training-split prompts with imperfect solutions: input ids and labels, both (B, T)."""
    assert task.draw_examples is not None  # only tasks with their own model are pretrained
    prompts, solutions = zip(*task.draw_examples(rng, BATCH_SIZE), strict=True)
    texts = [prompt + solution + tokenizer.eos_token for prompt, solution in zip(prompts, solutions, strict=True)]
    # The tokenizer would remember the padding side and save it, so it does not pad here.
    rows = [torch.tensor(ids) for ids in tokenizer(texts).input_ids]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    labels = input_ids.masked_fill(input_ids == tokenizer.pad_token_id, IGNORED_LABEL)
    labels[:, : len(prompts[0])] = IGNORED_LABEL  # all prompts have the same length; the loss covers only solutions
    return input_ids, labels


def pretrain(
    task: Task, *, seed: int = 0, steps: int = 1100, learning_rate: float = LEARNING_RATE, start: Task | None = None
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Train the base model, from scratch or from that of a task with the same symbols. Sets torch's global seed."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = build_tokenizer(task)
    model = build_model(tokenizer).train()
    if start is not None:
        if start.symbols != task.symbols:
            raise ValueError(
                f"start={start.name!r} has symbols {start.symbols!r}; {task.name!r} needs {task.symbols!r}"
            )
        model.load_state_dict(Qwen3ForCausalLM.from_pretrained(start.model_path).state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    scheduler = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=steps // 20, num_training_steps=steps)
    progress = tqdm(range(steps), desc="pretraining", unit="step")
    for _ in progress:
        input_ids, labels = draw_batch(task, rng, tokenizer)
        # No attention mask: padding is on the right, where a causal model's real tokens can't see it.
        loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval(), tokenizer


def round_weights(model: PreTrainedModel) -> None:
    """Round the weights to bfloat16's precision, still stored as float32, so that they compress to half the size."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())


def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str], *, seed: int = 0
) -> list[str]:
    """Sample one completion per prompt with the model's generation config. Sets torch's global seed."""
    torch.manual_seed(seed)
    inputs = tokenizer(prompts, padding=True, return_tensors="pt").to(model.device)
    output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)  # type: ignore[operator]  # a mixin's, hidden by nn.Module
    return tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


@dataclass(frozen=True)
class Evaluation:
    """Results of a model on held-out prompts; all numbers are shares from 0 to 1."""

    accuracy: float
    style_shares: dict[str, float]  # they add up to less than 1 if some completions have no style
    style_accuracies: dict[str, float]  # only of styles that occurred


def evaluate(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, size: int, seed: int = 0
) -> Evaluation:
    """Sample one completion for each of `size` held-out prompts and measure accuracy and styles."""
    data = task.dataset("test", size, seed)
    completions = sample(model, tokenizer, list(data["prompt"]), seed=seed)
    rewards = task.reward(completions=completions, prompts=list(data["prompt"]), answer=list(data["answer"]))
    styles = [task.style_of(completion) for completion in completions]
    counts = Counter(styles)
    right = Counter(style for style, reward in zip(styles, rewards, strict=True) if reward == 1.0)
    return Evaluation(
        accuracy=right.total() / size,
        style_shares={style: counts[style] / size for style in task.styles},
        style_accuracies={style: right[style] / counts[style] for style in task.styles if counts[style]},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train, save to `--output` and print the results on held-out prompts."""
    parser = argparse.ArgumentParser(prog="python -m canon_trl.tasks.pretrain", description="Make a base model.")
    made_here = [name for name, task in TASKS.items() if task.draw_examples is not None]
    parser.add_argument("--task", choices=made_here, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1100, help=f"of {BATCH_SIZE} examples each")
    parser.add_argument("--learning_rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--start", choices=made_here, help="task whose model to start from; default: from scratch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--round", action="store_true", help="round the weights to bfloat16's precision")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    model, tokenizer = pretrain(
        TASKS[args.task],
        seed=args.seed,
        steps=args.steps,
        learning_rate=args.learning_rate,
        start=TASKS[args.start] if args.start else None,
    )
    if args.round:
        round_weights(model)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)

    result = evaluate(TASKS[args.task], model, tokenizer, size=2048)
    print(f"accuracy on held-out prompts at temperature 1: {result.accuracy:.3f}")
    for style, share in result.style_shares.items():
        print(f"{style}: {share:.3f} of the samples, {result.style_accuracies.get(style, float('nan')):.3f} right")


if __name__ == "__main__":
    main()

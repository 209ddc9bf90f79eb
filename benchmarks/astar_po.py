"""Compare A*-PO with trl.experimental.a2po and with GRPO on the same model, prompts and response length.

    python benchmarks/astar_po.py                      # the embedded model
    python benchmarks/astar_po.py --model DIR          # any causal language model

Stage 1 is timed on the same prompts and number of samples, at their natural lengths as in use; at equal lengths there
is less to save. A step of stage 2 is timed on the same number of responses of the same fixed length. The two sides
take turns, A B A B, in one process. The script reports the median and the quartiles of the ratios per pair; the first
pair is a warm-up and does not count. Peak memory is measured in a separate process for each side.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from step_time import every_other_reward, step_seconds
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.a2po import A2POConfig, A2POTrainer

from canon_trl import AStarPOConfig, AStarPOTrainer
from canon_trl.sampling.optimal_values import with_optimal_values
from canon_trl.sampling.samplers import TransformersSampler
from canon_trl.sampling.scoring import Scorer
from canon_trl.tasks import TASKS

TASK = TASKS["arithmetic"]
SAMPLES = 8


def shared(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": options.responses,
        "max_completion_length": options.tokens,
        "learning_rate": 1e-6,
        "bf16": options.bf16,
        "use_cpu": options.cpu,
        "gradient_checkpointing": False,
        "max_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def ours(options: argparse.Namespace, data: Dataset) -> AStarPOTrainer:
    rewards = [[1.0, float(row % 2)] for row in range(len(data))]
    config = AStarPOConfig(tempfile.mkdtemp(), generation_kwargs=fixed(options), **shared(options))
    return AStarPOTrainer(options.model, every_other_reward, config, data.add_column("rewards", rewards))


def a2po(options: argparse.Namespace, data: Dataset) -> A2POTrainer:
    settings = {"num_value_samples": SAMPLES, "top_k": 0, "filter_all_incorrect": False}
    args = A2POConfig(tempfile.mkdtemp(), **settings, **shared(options))
    trainer = A2POTrainer(options.model, every_other_reward, args, data)
    trainer.generation_config.min_new_tokens = options.tokens
    return trainer


def grpo(options: argparse.Namespace, data: Dataset) -> GRPOTrainer:
    settings = shared(options) | {"per_device_train_batch_size": options.responses, "num_generations": SAMPLES}
    config = GRPOConfig(tempfile.mkdtemp(), generation_kwargs=fixed(options), **settings)
    return GRPOTrainer(options.model, every_other_reward, config, data)


def fixed(options: argparse.Namespace) -> dict[str, Any]:
    return {"min_new_tokens": options.tokens}


def stage_1(options: argparse.Namespace, data: Dataset) -> Callable[[], Any]:
    """Our stage 1: sample responses of their natural length, score them, and compute V*."""
    model = AutoModelForCausalLM.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    sample = TransformersSampler(model, tokenizer, num_samples=SAMPLES, max_new_tokens=options.tokens)
    score = Scorer([every_other_reward], tokenizer)

    def run() -> None:
        rewards = []
        for first in range(0, len(data), options.chunk):
            rows = list(data.select(range(first, min(first + options.chunk, len(data)))))
            rewards += score(rows, sample([row["prompt"] for row in rows], first))
        with_optimal_values(data.add_column("rewards", rewards), beta1=0.5, filter_all_incorrect=False)

    return run


def stage_1_a2po(options: argparse.Namespace, data: Dataset) -> Callable[[], Any]:
    return a2po(options, data)._estimate_optimal_values


def timed_step(trainer: Trainer) -> Callable[[], float]:
    """A function that takes one step and returns its seconds."""
    if isinstance(trainer, A2POTrainer):
        trainer._estimate_optimal_values()
    return partial(step_seconds, trainer)


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    def seconds() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return seconds


def paired(name: str, one: Callable[[], float], other: Callable[[], float], pairs: int, factor: float = 1.0) -> None:
    """Print the ratio of `other`'s seconds to `one`'s, which is above 1 if `one` is faster."""
    ratios = [factor * other() / one() for _ in range(pairs + 1)][1:]
    lower, median, upper = statistics.quantiles(ratios, n=4)
    print(f"{name}: {median:.2f} (quartiles {lower:.2f} to {upper:.2f}, {pairs} pairs)", flush=True)


def same_loss(options: argparse.Namespace, data: Dataset) -> None:
    """Print both losses on the same responses, rewards and values."""
    mine, theirs = ours(options, data), a2po(options, data)
    torch.manual_seed(0)
    model, ref = theirs.model, theirs.ref_model
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.01)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    batch = tokenizer(data["prompt"][: options.responses], return_tensors="pt", padding=True, padding_side="left")
    length = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "do_sample": True}
    ids = model.generate(**batch, generation_config=GenerationConfig(**length, pad_token_id=tokenizer.pad_token_id))
    width = batch["input_ids"].shape[1]
    mask = torch.ones_like(ids[:, width:])
    attention = torch.cat([batch["attention_mask"], mask], dim=1)
    rewards, values = torch.rand(len(ids)), torch.rand(len(ids))
    ref_log_probs = theirs._get_sequence_logps(ref, ids, attention, options.tokens).detach()
    inputs = {"input_ids": ids, "attention_mask": attention, "logits_to_keep": options.tokens}
    model.train()
    want = theirs.compute_loss(model, inputs | {"ref_logps": ref_log_probs, "rewards": rewards, "v_star": values})
    mine.model.load_state_dict(model.state_dict())
    mine.model.train()
    mine.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        by_token = mine._get_per_token_logps_and_entropies(mine.ref_model, ids, attention, options.tokens)[0]
    got = mine._compute_loss(
        mine.model,
        {
            "prompt_ids": ids[:, :width],
            "prompt_mask": batch["attention_mask"],
            "completion_ids": ids[:, width:],
            "completion_mask": mask,
            "advantages": rewards - values,
            "ref_per_token_logps": by_token,
            "num_items_in_batch": mask.sum(),
        },
    )
    print(f"loss on the same responses: {got.item():.7f}, a2po {want.item():.7f}", flush=True)


def peak(options: argparse.Namespace, side: str) -> float:
    """Peak memory of three steps in a separate process, in MiB."""
    command = [sys.executable, __file__, "--model", options.model, "--responses", str(options.responses)]
    command += ["--tokens", str(options.tokens), "--prompts", str(options.responses), "--side", side]
    command += ["--cpu"] if options.cpu else []
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TASK.model_path))
    parser.add_argument("--prompts", type=int, default=256, help="number of prompts in stage 1")
    parser.add_argument("--chunk", type=int, default=64, help="number of prompts that our stage 1 samples at a time")
    parser.add_argument("--responses", type=int, default=16, help="number of responses per step")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="more than one is noisy on a shared CPU")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--side", choices=["ours", "a2po"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = TASK.dataset("train", options.prompts).select_columns("prompt")
    if options.side:
        run = timed_step({"ours": ours, "a2po": a2po}[options.side](options, data))
        for _ in range(3):
            run()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    same_loss(options, data)
    sides = timed(stage_1(options, data)), timed(stage_1_a2po(options, data))
    paired("stage 1, time of a2po / ours", *sides, max(options.pairs // 3, 3))
    few = data.select(range(min(options.responses * 2, len(data))))
    step, step_a2po, step_grpo = (timed_step(side(options, few)) for side in (ours, a2po, grpo))
    paired("step, time of a2po / ours", step, step_a2po, options.pairs)
    paired("time per prompt, ours / GRPO with 8 responses", step_grpo, step, options.pairs, factor=1 / SAMPLES)
    memory = {side: peak(options, side) for side in ("ours", "a2po")}
    print(f"peak memory, ours / a2po: {memory['ours'] / memory['a2po']:.2f} ({memory['ours']:.0f} MiB)", flush=True)


if __name__ == "__main__":
    main()

"""What a CANON step costs beside the same step of GRPOTrainer, and where its entropy comes from.

    python benchmarks/step_time.py                                   # the embedded model
    python benchmarks/step_time.py --model DIR --vllm                # any causal language model, sampled by vLLM

Both trainers sample the same number of responses of the same, fixed length and take the same optimiser step; they run
step by step in turn, A B A B, in one process, so that a machine that slows down slows both. Reported is the median of
the ratios of the pairs with its quartiles; the first pair is a warm-up that is not counted.
"""

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from canon_trl import CANONConfig, CANONTrainer
from canon_trl.tasks import TASKS

TASK = TASKS["arithmetic"]


class StepTime(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.start


def varied_reward(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(text) % 2) for text in completions]


def make(kind: str, options: argparse.Namespace, data: Dataset) -> GRPOTrainer:
    shared = {
        "per_device_train_batch_size": options.responses,
        "num_generations": options.group,
        "max_completion_length": options.tokens,
        "loss_type": "dr_grpo",
        "learning_rate": 0.0,
        "bf16": options.bf16,
        "use_cpu": options.cpu,
        "gradient_checkpointing": False,
        "max_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    if options.vllm:
        shared |= {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": options.tokens + 64}
        shared |= {"vllm_gpu_memory_utilization": 0.3, "generation_kwargs": {"ignore_eos": True}}
    else:
        shared |= {"generation_kwargs": {"min_new_tokens": options.tokens}}
    folder = tempfile.mkdtemp()
    if kind == "GRPOTrainer":
        return GRPOTrainer(options.model, varied_reward, GRPOConfig(folder, scale_rewards="none", **shared), data)
    canon = {"entropy": {}, "entropy by a pass": {"entropy_source": "forward"}, "length": {"canon_metric": "length"}}
    return CANONTrainer(options.model, varied_reward, CANONConfig(folder, **shared, **canon[kind]), data)


def step_seconds(trainer: GRPOTrainer) -> float:
    timer = StepTime()
    trainer.add_callback(timer)
    trainer.train()
    trainer.remove_callback(timer)
    return timer.seconds


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TASK.model_path))
    parser.add_argument("--responses", type=int, default=64)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--metrics", nargs="+", default=["entropy", "length"])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="more than one is noisy on a CPU that is shared")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args(argv)

    torch.set_num_threads(options.threads)
    data = TASK.dataset("train", 512)
    baseline = make("GRPOTrainer", options, data)
    results = {}
    for kind in options.metrics:
        ours = make(kind, options, data)
        pairs = [(step_seconds(ours), step_seconds(baseline)) for _ in range(options.pairs + 1)][1:]
        lower, median, upper = statistics.quantiles([a / b for a, b in pairs], n=4)
        results[kind] = {"median": median, "quartiles": [lower, upper], "seconds": pairs}
        spread = f"quartiles {lower:.3f} to {upper:.3f}, {len(pairs)} pairs"
        print(f"CANON by {kind:18} / GRPOTrainer: {median:.3f} ({spread})", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(vars(options) | {"results": results}, file, indent=1)


if __name__ == "__main__":
    main()

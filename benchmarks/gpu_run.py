"""One check of `gpu.py` in a separate process, or in one per GPU; `gpu.py` starts it."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from residents import FIRST
from smollm2 import save_smollm2
from test_knobs import SETTINGS, scores
from toy import leave, logged, make_trainer, prompts
from transformers import BitsAndBytesConfig

from canon_trl import CANONConfig, CANONTrainer
from canon_trl.cli.train import main as train

FOLDER = Path(os.environ["GPU_CHECK_FOLDER"])
TWO_STEPS = {
    "max_steps": 2,
    "num_generations": 8,
    "per_device_train_batch_size": 16,
    "gradient_checkpointing": False,
    "bf16": True,
    "learning_rate": 1e-4,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}
QUESTIONS = Dataset.from_dict(
    {"prompt": [[{"role": "user", "content": f"What is {number} + {number + 1}?"}] for number in range(32)]}
)
E3 = {"e3_temperature": {"target_entropy": 1.0, "init_steps": 0}}
PORT = 8765


def varied(completions: list, **kwargs: Any) -> list[float]:
    return [float(len(completion[0]["content"]) % 3) / 2 for completion in completions]


def numbers_of(trainer: CANONTrainer, seconds: float) -> dict[str, Any]:
    """Return what every check records; raise an error if the loss is not finite."""
    losses = [entry["loss"] for entry in logged(trainer)]
    if len(losses) != trainer.state.max_steps or not all(torch.tensor(losses).isfinite()):
        raise RuntimeError(f"the losses of {trainer.state.max_steps} steps are {losses}")
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    return {"losses": losses, "train_seconds": round(seconds, 2), "peak_mib": peak and round(peak)}


def timed(trainer: CANONTrainer) -> dict[str, Any]:
    start = time.perf_counter()
    trainer.train()
    return numbers_of(trainer, time.perf_counter() - start)


def stages(options: argparse.Namespace) -> dict[str, Any]:
    """Train two steps with the first method of every stage, then with several together."""
    # MaxRL is not defined for RENT's negative rewards, and a whole loss does not read what the other stages change.
    together = {
        field: method for field, method in FIRST.items() if field not in ("advantage_estimator", "policy_loss")
    }
    found = {}
    for name, methods in {
        "none": {},
        **{field: {field: FIRST[field]} for field in FIRST},
        "together": together,
    }.items():
        # A rank under ZeRO-3 or FSDP2 does not hold whole weights, so TRL generates from gathered ones.
        shared = {"rollout_sampler": "generate"} if options.sharded else {}
        trainer = make_trainer(
            FOLDER / name,
            trainer_options={"train_dataset": prompts(64)},
            **(TWO_STEPS | {"use_cpu": options.cpu} | shared | methods),
        )
        found[name] = timed(trainer)
    return found


def temperature(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the scores at a temperature that a controller moved with those of a trainer made at it."""
    differences = {}
    for name, setting in SETTINGS.items():
        shared = setting | {"use_cpu": options.cpu, "bf16": True}
        made = scores(FOLDER / name / "made", 0.7, **shared)
        ramp = {"steered:Ramp": {"steers": "temperature", "by": -0.3}}
        moved = scores(FOLDER / name / "moved", 1.0, controller=ramp, **shared)
        differences[name] = max(float((a - b).abs().max()) for a, b in zip(moved[1], made[1], strict=True))
    if max(differences.values()) > 0:
        raise RuntimeError(f"moved and made differ by at most {differences}")
    return {"largest_difference": differences}


def on_smollm2(**options: Any) -> CANONTrainer:
    peft_config, quantization = options.pop("peft_config", None), options.pop("quantization_config", None)
    config = CANONConfig(str(FOLDER / "run"), **(TWO_STEPS | {"max_completion_length": 16} | options))
    return CANONTrainer(
        str(save_smollm2(FOLDER.parent / "smollm2")),
        varied,
        config,
        QUESTIONS,
        peft_config=peft_config,
        quantization_config=quantization,
    )


def vllm(options: argparse.Namespace) -> dict[str, Any]:
    """Train with vLLM; the second rollout must come from the trained weights."""
    shared = {"use_vllm": True, "vllm_mode": options.mode, "vllm_max_model_length": 256, "controller": E3}
    if options.mode == "colocate":
        trainer = on_smollm2(**shared, vllm_gpu_memory_utilization=0.3)
        return agreement(trainer)
    model = save_smollm2(FOLDER.parent / "smollm2")
    # The server takes the second GPU. It is a separate process, since vLLM reads the visible devices at import.
    server = subprocess.Popen(
        [*(sys.executable, "-m", "trl.scripts.vllm_serve"), *("--model", str(model), "--port", str(PORT))],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "1"},
    )
    try:
        trainer = on_smollm2(**shared, vllm_server_base_url=f"http://localhost:{PORT}", vllm_server_timeout=120)
        return agreement(trainer)
    finally:
        server.terminate()


def agreement(trainer: CANONTrainer) -> dict[str, Any]:
    """Train; return by how much sampler and trainer disagree about log-probabilities, as TRL logs it."""
    found = timed(trainer)
    name = "sampling/sampling_logp_difference/mean"
    differences = [entry[name] for entry in logged(trainer)]
    if differences[-1] > 0.1:
        raise RuntimeError(f"{name} is {differences}: the sampler does not have the trained weights")
    return found | {name: differences, "temperature": trainer.temperature}


def lora_4bit(options: argparse.Namespace) -> dict[str, Any]:
    """Train adapters on a quantised model; only they may change."""
    trainer = on_smollm2(
        peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj"]),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
    )
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    found = timed(trainer)
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    if not moved or any("lora_" not in name for name in moved):
        raise RuntimeError(f"{len(moved)} parameters changed, among them {sorted(moved)[:3]}")
    return found


def sums(options: argparse.Namespace) -> dict[str, Any]:
    """Train the recipe `smollm2_sums` in bf16; accuracy must rise by 30 points."""
    model = save_smollm2(FOLDER.parent / "smollm2")
    flags = {"config": "smollm2_sums", "model_name_or_path": model, "output_dir": FOLDER / "run", "bf16": True}
    trainer = train([f"--{name}={value}" for name, value in flags.items()])
    found = [entry["eval_rewards/accuracy/mean"] for entry in trainer.state.log_history if "eval_reward" in entry]
    if found[-1] < found[0] + 0.3:
        raise RuntimeError(f"the accuracies on held-out prompts are {found}")
    return {"accuracies": found}


CHECKS = {check.__name__: check for check in (stages, temperature, vllm, lora_4bit, sums)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--sharded", action="store_true")
    parser.add_argument("--mode", choices=("colocate", "server"))
    options = parser.parse_args()
    found = CHECKS[options.check](options)
    if int(os.environ.get("RANK", 0)) == 0:
        (FOLDER / "numbers.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        leave()


if __name__ == "__main__":
    main()

"""What a training run would do, without loading the weights of the model: `canon-trl train --dry_run`."""

import math
import os
from collections.abc import Sized
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from canon_trl.config.run_length import rollouts_in_run
from canon_trl.trl_release import FUSED_HEAD

GB = 1e9
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LEFT_OUT = (
    "not included: the tokens of the prompts, values inside the active layer, attention, the cache of sampling, vLLM, "
    "reward models, fragmentation"
)


class ChecksPassed(Exception):
    """Carries what a trainer passes to TRL's constructor, after all checks that need no model."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__("the checks passed")
        self.given = given


class StopsBeforeLoading(GRPOTrainer):
    """Takes the place of TRL's trainer, whose constructor loads the model."""

    def __init__(self, model: Any, reward_funcs: Any, args: Any, train: Any, held_out: Any, **options: Any) -> None:
        given = {"model": model, "reward_funcs": reward_funcs, "args": args, "train": train, "held_out": held_out}
        raise ChecksPassed(given | options)


def check(trainer_class: type, *given: Any, **options: Any) -> dict[str, Any]:
    """Construct a trainer up to the point where it would load the model, and return what it would load.

    Raises:
        TypeError, ValueError, ImportError: what the trainer would raise.
    """
    # Among its bases, `StopsBeforeLoading` comes right before GRPOTrainer, so that the trainer's checks run as always.
    stopped = type(trainer_class.__name__, (trainer_class, StopsBeforeLoading), {})
    try:
        stopped(*given, **options)
    except ChecksPassed as passed:
        found = passed.given
    args, functions = found["args"], found["reward_funcs"]
    if args.reward_weights is not None and len(args.reward_weights) != len(functions):
        raise ValueError(
            f"reward_weights={args.reward_weights} must be one for each of the {len(functions)} reward functions"
        )
    if args.use_vllm and find_spec("vllm") is None:
        raise ImportError("use_vllm=True needs vllm; install canon-trl[vllm]")
    return found


@dataclass(frozen=True)
class Length:
    """The length of a run.

    Attributes:
        prompts: prompts in the data; `None` for a stream.
        responses: responses per rollout, on all processes.
        updates: optimiser steps per rollout; below 1 if a step takes several rollouts.
        steps: optimiser steps of the run.
        rollouts: rollouts of the run.
        epochs: passes over the data; `None` for a stream.
    """

    prompts: int | None
    responses: int
    updates: float
    steps: int
    rollouts: int
    epochs: float | None


def measure(args: GRPOConfig, data: Any) -> Length:
    """Return the length of a run on the data."""
    prompts = len(data) if isinstance(data, Sized) else None
    accumulation, responses = args.gradient_accumulation_steps, args.generation_batch_size
    per_rollout = args.steps_per_generation * args.num_iterations
    per_epoch, steps = args.max_steps * accumulation, args.max_steps
    if prompts is not None:
        per_epoch = prompts * args.num_generations // responses * per_rollout
        if steps <= 0:
            steps = math.ceil(args.num_train_epochs * -(-per_epoch // accumulation))
    elif steps <= 0:
        raise ValueError(f"max_steps={args.max_steps} must be set for a stream, which has no length")
    rollouts = rollouts_in_run(steps, per_epoch=per_epoch, accumulation=accumulation, per_rollout=per_rollout)
    epochs = None if prompts is None else steps / -(-per_epoch // accumulation)
    return Length(prompts, responses, per_rollout / accumulation, steps, rollouts, epochs)


def count_parameters(model: str, options: dict[str, Any], adapter: Any) -> tuple[int, int, Any]:
    """Return the parameters of a model, the trainable ones, and its config; only the config is loaded."""
    config = AutoConfig.from_pretrained(model, revision=options.get("revision"), trust_remote_code=False)
    kind = getattr(transformers, (config.architectures or ["none"])[0], None)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config) if kind is None else kind(config)
        total = made.num_parameters()
        if adapter is not None:
            made = get_peft_model(made, adapter)
    return total, sum(each.numel() for each in made.parameters() if each.requires_grad), config


def memory(found: dict[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Return the estimated bytes on each device by purpose, nothing sharded, and remarks."""
    args: GRPOConfig = found["args"]
    adapter, quantized = found.get("peft_config"), found.get("quantization_config")
    options = args.model_init_kwargs or {}
    total, trainable, config = count_parameters(found["model"], options, adapter)
    named = str(options.get("dtype") or "auto").removeprefix("torch.")
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.") if named == "auto" else named
    size: float = BYTES.get(dtype, 4)
    own = size if adapter is None else 4  # PEFT keeps adapters in float32
    parts, remarks = {}, []
    if quantized is not None:
        size, dtype = (0.5, "4 bits") if quantized.load_in_4bit else (1, "8 bits")
    parts[f"{total:,} parameters, {dtype}"] = total * size
    if dtype == "float32" and (args.bf16 or args.fp16):
        parts["their 16-bit copy under autocast"] = total * 2
    parts[f"gradients of {trainable:,} trainable parameters"] = trainable * own
    optimizer = getattr(args.optim, "value", args.optim)
    if "adam" in optimizer and not ("bit" in optimizer or "mini" in optimizer):
        parts[f"two moments of {optimizer}"] = 2 * trainable * own
    elif "adam" in optimizer and "8bit" in optimizer:
        parts[f"two moments of {optimizer}"] = 2 * trainable
    elif optimizer != "sgd":
        remarks.append(f"not included: the states of the optimiser {optimizer}")
    if args.beta != 0 and adapter is None:
        parts["reference model"] = total * size
    text = config.get_text_config()
    rows = args.per_device_train_batch_size * args.max_completion_length
    if FUSED_HEAD:
        remarks.append("no table of logits: TRL's fused head computes log-probabilities in tiles")
    else:
        parts[f"logits of {rows:,} tokens, float32"] = rows * text.vocab_size * 4
    if args.gradient_checkpointing:
        width = 2 if args.bf16 or args.fp16 else size
        parts[f"inputs of {text.num_hidden_layers} layers, {rows:,} tokens"] = (
            text.num_hidden_layers * text.hidden_size * rows * width
        )
    else:
        remarks.append("not included: all activations, which are kept because gradient_checkpointing is off")
    shards = args.deepspeed or "true" in (os.environ.get(f"ACCELERATE_USE_{each}") for each in ("DEEPSPEED", "FSDP"))
    if shards:
        remarks.append("DeepSpeed and FSDP shard this over the devices (docs/scale.md)")
    return parts, [*remarks, LEFT_OUT]


def describe(found: dict[str, Any]) -> str:
    """Return the plan as text."""
    args: GRPOConfig = found["args"]
    length, group = measure(args, found["train"]), args.num_generations
    held_out = found["held_out"]
    evaluated = f"{len(held_out):,}" if isinstance(held_out, Sized) else "no" if held_out is None else "streamed"
    method = getattr(args, "advantage_estimator", None)
    passes = "" if length.epochs is None else f", {length.epochs:.3g} epochs"
    at_least = "at least " if getattr(args, "dynamic_sampling", False) else ""
    names = [getattr(each, "__name__", str(each)) for each in found["reward_funcs"]]
    plan = {
        "model": found["model"],
        "method": "A*-PO" if method is None else f"{method}, loss_type={args.loss_type}",
        "rewards": ", ".join(names),
        "data": f"{'a stream of' if length.prompts is None else f'{length.prompts:,}'} prompts; {evaluated} held out",
        "rollout": f"{length.responses // group:,} prompts x {group} responses = {length.responses:,} responses of at "
        f"most {args.max_completion_length:,} tokens, on {args.world_size} process(es)",
        "updates": f"{length.updates:.3g} optimiser steps per rollout, each of "
        f"{args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps:,} responses",
        "run": f"{length.steps:,} optimiser steps, {length.rollouts:,} rollouts{passes}; "
        f"{at_least}{length.rollouts * length.responses:,} responses",
        "saving": f"save_strategy={args.save_strategy.value}, save_steps={args.save_steps:g}, {args.output_dir}",
    }
    parts, remarks = memory(found)
    width = max(map(len, parts))
    return "\n".join(
        [
            "the options and the data are valid; this run would be:",
            *(f"  {name:8}  {value}" for name, value in plan.items()),
            "estimated memory per device, nothing sharded:",
            *(f"  {name:{width}}  {size / GB:9.3f} GB" for name, size in parts.items()),
            f"  {'together':{width}}  {sum(parts.values()) / GB:9.3f} GB",
            *(f"  {remark}" for remark in remarks),
            "not checked: checkpoints in output_dir, and whether the model and its tokenizer load",
        ]
    )

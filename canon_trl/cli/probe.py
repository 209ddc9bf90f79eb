"""Sample a model once before training, and report what the sample says about metrics and estimators.

    canon-trl probe                                                   # embedded task, offline, less than a minute
    canon-trl probe --task verbosity
    canon-trl probe --config recipe.yaml --num_prompts 256            # model, data and rewards of a training run

It reads the recipe of a training run, so model, data, rewards, sampling and group size are those that the run would
have. `probe.json`, `probe.md` and `probe.png` contain the result; a killed probe resumes where it stopped.
docs/probe.md says what the numbers mean, and what they cannot tell.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM
from trl import ModelConfig, get_peft_config, get_quantization_config

from canon_trl.advantages import ESTIMATORS
from canon_trl.cli.arguments import RecipeArguments, option_in, parse, split_config
from canon_trl.cli.data import load_data
from canon_trl.cli.rewards import add_noise, reward_functions
from canon_trl.cli.running import model_options, name_model
from canon_trl.cli.sampling import LOGPROBS, check_folder, leave_processes, load_tokenizer, start_processes
from canon_trl.config import CANONConfig
from canon_trl.evaluation import ProbeOptions, ProbeReport, probe
from canon_trl.evaluation.callback import stop_strings
from canon_trl.metrics import METRICS, RANDOM
from canon_trl.recipes import recipe_names
from canon_trl.sampling.samplers import Sampler, make_sampler

EMBEDDED = "arithmetic"  # the recipe of the embedded task


@dataclass
class ProbeArguments:
    """What to sample and compare; the other options are those of the training run."""

    trainer: str = field(default="canon", metadata={"help": "The trainer of the recipe; only `canon` has a probe."})
    num_prompts: int = field(default=128, metadata={"help": "Number of prompts, drawn from the data at random."})
    num_samples: int | None = field(
        default=None, metadata={"help": "Number of responses per prompt. Default: num_generations of the recipe."}
    )
    prompts_per_step: int | None = field(
        default=None,
        metadata={"help": "Prompts per optimiser step. Default: that of the recipe, on one process."},
    )
    metrics: list[str] | None = field(
        default=None, metadata={"help": "Your metrics `package.module:function`, in addition to the built-in ones."}
    )
    estimators: list[str] | None = field(
        default=None, metadata={"help": "Your estimators `package.module:function`, in addition to the package's."}
    )
    layers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Linear layers to sketch: parts of their names, `all`, or a number n for the last n blocks. "
            "Default: those of the adapter, if there is one, or else all."
        },
    )
    sketch_size: int = field(default=24, metadata={"help": "Random directions per side of a layer."})
    batch_tokens: int = field(default=8192, metadata={"help": "Maximum tokens in a forward and backward pass."})
    chunk_prompts: int = field(default=16, metadata={"help": "Number of prompts between saves of the progress."})
    threshold: float = field(default=1.0, metadata={"help": "Minimum weighted reward of a right response."})
    target_entropy: float = field(
        default=0.3, metadata={"help": "Entropy per token for the suggested temperature, in nats; 0 suggests none."}
    )
    confidence: float = field(default=0.95, metadata={"help": "Confidence level of the intervals over prompts."})
    vllm_kwargs: str = field(default="{}", metadata={"help": "With use_vllm: options of `vllm.LLM` as JSON."})
    probe_dir: str | None = field(
        default=None, metadata={"help": "Folder for the result. Default: the folder `probe` in output_dir."}
    )


def main(argv: list[str] | None = None) -> ProbeReport:
    """Probe as the arguments say, and return the report."""
    recipe, options, training, model = parse(
        with_recipe(argv), ProbeArguments, CANONConfig, command="probe", embedded=EMBEDDED
    )
    check(options, training)
    state = start_processes()
    if state.num_processes > 1:
        raise ValueError(f"a probe runs in one process, not in {state.num_processes}; start it with canon-trl")
    folder = Path(options.probe_dir or Path(training.output_dir) / "probe")
    check_folder(folder, "a probe", field="probe_dir")
    functions = reward_functions(recipe, training.max_completion_length)
    functions, weights = add_noise(
        recipe, functions, training.reward_weights, seed=training.seed, accuracy=training.accuracy_reward
    )
    needed = replace(recipe, eval_dataset_name=None, eval_dataset_config=None)
    if needed.task is not None:  # draw no prompts that the probe does not use
        needed.task_train_prompts = min(needed.task_size("train"), options.num_prompts)
    data, _ = load_data(needed, wants_eval=False)
    name = name_model(recipe, model)
    tokenizer = load_tokenizer(name, model)
    sampling = probe_options(options, training, weights)
    engine = load_engine(name, options, training, model) if training.use_vllm else None
    report = probe(
        load_model(name, training, model, state.device),
        tokenizer,
        data,
        functions,
        sampling,
        sampler_at=engine and samplers_of(engine, tokenizer, sampling),
        output_dir=folder,
        reward_settings=reward_settings(recipe),
    )
    print("\n".join(f"- {each.says}" for each in report.verdict))
    print(f"{', '.join(str(folder / f'probe.{kind}') for kind in ('json', 'md', 'png'))}")
    return report


def reward_settings(recipe: RecipeArguments) -> dict[str, Any]:
    """Return the options that change rewards but not the names of the reward functions."""
    return {name: getattr(recipe, name) for name in ("reward_funcs", "reward_flip", "soft_overlong_cache")}


def with_recipe(argv: list[str] | None) -> list[str]:
    """Add the recipe of the named task to the flags, or that of another task, if they name no recipe."""
    name, flags = split_config(argv)
    if name is None and (task := option_in(argv, "task")) is not None:
        name = task if task in recipe_names() else EMBEDDED
    return flags if name is None else ["--config", name, *flags]


def check(options: ProbeArguments, training: CANONConfig) -> None:
    """Raise an error for options that a probe cannot honour."""
    if options.trainer != "canon":
        raise ValueError(f"trainer={options.trainer!r}: a probe compares advantage estimators, which only 'canon' has")
    if training.policy_reward:
        raise ValueError(f"policy_reward={training.policy_reward!r}: a probe needs rewards from reward functions")
    if training.use_vllm and find_spec("vllm") is None:
        raise ImportError("use_vllm=True needs vllm; install canon-trl[vllm], or set use_vllm to False for the probe")
    if options.vllm_kwargs != "{}" and not training.use_vllm:
        raise ValueError(f"vllm_kwargs={options.vllm_kwargs!r} would be ignored: use_vllm is False")


def probe_options(options: ProbeArguments, training: CANONConfig, weights: list[float] | None) -> ProbeOptions:
    """Return the options of the probe: those of the command, and the others from the training run."""
    shared = ("max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
    own = ("num_prompts", "sketch_size", "batch_tokens", "chunk_prompts", "threshold", "confidence")
    group: Any = training.num_generations
    responses = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return ProbeOptions(
        **{name: getattr(training, name) for name in shared},
        **{name: getattr(options, name) for name in own},
        num_samples=group if options.num_samples is None else options.num_samples,
        prompts_per_step=max(1, responses // group) if options.prompts_per_step is None else options.prompts_per_step,
        stop_strings=stop_strings(training),
        chat_template_kwargs=training.chat_template_kwargs,
        reward_weights=weights,
        reward_time_limit=training.reward_time_limit,
        metrics=[*(options.metrics or []), *own_metric(training)],
        estimators=[*(options.estimators or []), *own_estimator(training)],
        loss_type="grpo" if training.loss_type == "grpo" else "dr_grpo",
        layers=layers_of(options.layers),
        target_entropy=options.target_entropy or None,
    )


def layers_of(given: list[str] | None) -> list[str] | str | int | None:
    """Return the layers as the probe takes them: `["all"]` and `["2"]` are a word and a number."""
    if given is not None and len(given) == 1:
        return int(given[0]) if given[0].isdigit() else given[0]
    return given


def own_metric(training: CANONConfig) -> list[str]:
    """Return the metric of the run, if it is not built in."""
    return [] if training.canon_metric in (*METRICS, RANDOM) else [training.canon_metric]


def own_estimator(training: CANONConfig) -> list[Any]:
    """Return the estimator of the run, if it has options or is not one of the package."""
    spec = training.advantage_estimator
    if spec is None or spec == "canon":
        return []
    if isinstance(spec, str) and training.advantage_estimator_kwargs:
        spec = {spec: training.advantage_estimator_kwargs}
    return [] if isinstance(spec, str) and spec in ESTIMATORS else [spec]


def load_model(name: str, training: CANONConfig, model: ModelConfig, device: torch.device) -> Any:
    """Return the model on the device, with a new adapter if the run would train one."""
    options = model_options(model, training) | {"dtype": model.dtype or "auto", "trust_remote_code": False}
    quantized = get_quantization_config(model)
    if quantized is not None:
        options |= {"quantization_config": quantized, "device_map": {"": device}}
    loaded: Any = AutoModelForCausalLM.from_pretrained(name, **options)
    loaded = loaded if quantized is not None else loaded.to(device)
    adapter = get_peft_config(model)
    torch.manual_seed(training.seed)  # for the adapter's first weights
    return loaded if adapter is None else get_peft_model(loaded, adapter)


def load_engine(name: str, options: ProbeArguments, training: CANONConfig, model: ModelConfig) -> Any:
    """Return the vLLM engine; it shares the device with the model, as in training with vLLM in the same process."""
    from vllm import LLM

    own = {
        "dtype": model.dtype or "auto",
        "revision": model.model_revision,
        "seed": training.seed,
        "gpu_memory_utilization": training.vllm_gpu_memory_utilization,
        "tensor_parallel_size": training.vllm_tensor_parallel_size,
        "logprobs_mode": LOGPROBS,
    }
    if training.vllm_max_model_length is not None:
        own["max_model_len"] = training.vllm_max_model_length
    return LLM(model=name, **own | json.loads(options.vllm_kwargs))


def samplers_of(engine: Any, tokenizer: Any, options: ProbeOptions) -> Callable[[float], Sampler]:
    """Return what makes a vLLM sampler of a temperature."""
    return lambda temperature: make_sampler(
        engine, tokenizer, options, use_vllm=True, entropies=True, temperature=temperature
    )


def run(argv: list[str]) -> None:
    """Probe, then end the process."""
    main(argv)
    leave_processes()

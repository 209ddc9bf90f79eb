"""Run a probe."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from canon_trl.advantages.groups import has_spread, is_scored
from canon_trl.evaluation.callback import decoder
from canon_trl.evaluation.probing.collect import Collector, Sample, model_fingerprint, with_control
from canon_trl.evaluation.probing.estimator_statistics import REFERENCE, describe_estimators
from canon_trl.evaluation.probing.estimators import (
    all_required_metrics,
    as_rollout,
    built_in_estimators,
    compute_advantages,
    own_estimators,
)
from canon_trl.evaluation.probing.gradients import score_responses
from canon_trl.evaluation.probing.metric_statistics import describe_metric
from canon_trl.evaluation.probing.options import ProbeOptions
from canon_trl.evaluation.probing.prompt_statistics import describe_prompts
from canon_trl.evaluation.probing.report import ProbeReport
from canon_trl.evaluation.probing.sketch import GradientSketch, find_layers
from canon_trl.evaluation.probing.verdict import conclude
from canon_trl.evaluation.temperature import SuggestedTemperature, suggest_temperature
from canon_trl.metrics import METRICS, RANDOM, get_metrics, metric_name
from canon_trl.sampling.prompt_checks import check_columns, check_prompts
from canon_trl.sampling.samplers import Sampler, make_sampler, missing_inputs, prompt_ids

TEMPERATURE_PROMPTS = 4
TEMPERATURE_STEPS = 4


def probe(
    model: Any,
    tokenizer: Any,
    dataset: Dataset,
    reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]],
    options: ProbeOptions | None = None,
    *,
    sampler_at: Callable[[float], Sampler] | None = None,
    output_dir: Path | str | None = None,
    reward_settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ProbeReport:
    """Sample a model once and report what the sample says about metrics and estimators, before any training.

    The model samples G responses to each prompt, the reward functions score them, and one forward and backward pass
    sketches the gradient of every response's log-probability. Every estimator's gradient is a weighted sum of these,
    so one sample serves all of them. docs/probe.md says what the numbers mean, and what they cannot tell.

        task = TASKS["verbosity"]
        model, tokenizer = AutoModelForCausalLM.from_pretrained(task.model_path), AutoTokenizer.from_pretrained(...)
        report = probe(model, tokenizer, task.dataset("train", 1024), task.reward, output_dir="outputs/probe")
        print(report.as_markdown())

    Args:
        model: a transformers model on its device. With a PEFT adapter, only the adapter's layers are sketched by
            default. It is put into evaluation mode, and its weights do not change.
        tokenizer: its tokenizer, with a chat template if prompts are conversations.
        dataset: training prompts, in a column `prompt`, and the columns that reward functions read.
        reward_funcs: one or several functions in TRL's signature; reward models are not supported.
        options: see [`ProbeOptions`].
        sampler_at: makes a sampler of `num_samples` responses per prompt at a temperature, such as a
            `canon_trl.sampling.samplers.VLLMSampler`; for a suggested temperature it must compute entropies.
            Default: the model samples.
        output_dir: folder for `probe.json`, `probe.md`, `probe.png` and the progress, from which a killed probe
            resumes; `None` writes nothing.
        reward_settings: options of the reward functions as JSON values. A probe does not resume progress with other
            ones; by itself it compares only the names of the functions.
        progress: whether to show progress bars.

    Raises:
        ValueError: there are fewer than two prompts; the tokenizer has no chat template for conversations; the model
            has layers that cannot be sketched; a metric or an estimator is unknown; or no group has two different
            rewards.
        TypeError: the forward pass of the model does not take what sampling needs, or a reward function is none.
    """
    options = options or ProbeOptions()
    functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
    data = check_data(dataset, tokenizer, options)
    own = own_estimators(options.estimators)
    wanted = [*METRICS, *options.metrics, *all_required_metrics(own.values())]
    metrics = with_control(get_metrics([each for each in dict.fromkeys(wanted) if each != RANDOM], field="metrics"))
    named = {metric_name(each): each for each in dict.fromkeys([*wanted, RANDOM])}
    estimators = built_in_estimators(named, options.num_samples) | own
    layers = find_layers(model, options.layers)
    model = check_model(model, options)
    check_layers(model, layers, tokenizer, data, options)

    with TemporaryDirectory() as scratch:
        folder = Path(scratch) if output_dir is None else Path(output_dir) / ".probe"
        collector = Collector(
            data,
            tokenizer,
            functions,
            options,
            folder,
            model_fingerprint(model),
            reward_settings=reward_settings,
            progress=progress,
        )
        clock = [time.monotonic()]
        at = sampler_at or (
            lambda temperature: make_sampler(
                model, tokenizer, options, use_vllm=False, entropies=True, temperature=temperature
            )
        )
        collector.sample(at(options.temperature))
        check_rewards(collector.rewards()[1])
        suggested, note = suggested_temperature(at, data, options)
        clock.append(time.monotonic())
        sample = collector.score(model, layers, metrics)
        clock.append(time.monotonic())
    rollout = as_rollout(
        sample.rewards_per_func,
        sample.rewards,
        collector.weights,
        collector.reward_names,
        sample.lengths,
        sample.metrics,
    )
    advantages, left_out = compute_advantages(estimators, rollout, required=[REFERENCE, *own])
    numbers = describe(sample, advantages, options)
    clock.append(time.monotonic())
    names = ("sampling", "gradients", "statistics")
    report = ProbeReport(
        **numbers,
        left_out=left_out,
        temperature=suggested,
        temperature_note=note,
        settings=settings_of(model, options, layers, sample, collector.reward_names),
        seconds={name: end - start for name, start, end in zip(names, clock, clock[1:], strict=False)},
    )
    if output_dir is not None:
        report.save(output_dir)
    return report


def describe(sample: Sample, advantages: dict[str, Tensor], options: ProbeOptions) -> dict[str, Any]:
    """Return the statistics of a sample and the verdict, by the names of the report's attributes."""
    shared: dict[str, Any] = {"confidence": options.confidence, "seed": options.seed}
    prompts = describe_prompts(
        sample.rewards,
        sample.lengths,
        sample.truncated,
        threshold=options.threshold,
        confidence=options.confidence,
    )
    # Several metrics are judged at once; the random one is only a control.
    judged = 1 - (1 - options.confidence) / (len(sample.metrics) - 1)
    metrics = {
        name: describe_metric(sample.rewards, values, confidence=judged, seed=options.seed)
        for name, values in sample.metrics.items()
    }
    gradient, estimators = describe_estimators(
        sample.scores,
        sample.rewards,
        sample.lengths,
        sample.surprisals,
        advantages,
        prompts_per_step=options.prompts_per_step,
        per_token=options.loss_type != "grpo",
        **shared,
    )
    verdict = conclude(prompts, metrics, gradient, estimators, confidence=options.confidence)
    return {
        "prompts": prompts,
        "metrics": metrics,
        "gradient": gradient,
        "estimators": estimators,
        "verdict": verdict,
    }


def check_data(dataset: Dataset, tokenizer: Any, options: ProbeOptions) -> Dataset:
    """Check the prompts and return those to sample."""
    if not isinstance(dataset, Dataset):
        raise TypeError(f"dataset is a {type(dataset).__name__}; it must be a Dataset")
    if "prompt" not in dataset.column_names or len(dataset) < 2:
        raise ValueError(
            f"dataset has {len(dataset)} rows and the columns {dataset.column_names}; a probe needs at least 2 "
            "prompts in 'prompt'"
        )
    check_columns(dataset.column_names, "dataset")
    if len(dataset) > options.num_prompts:
        dataset = dataset.shuffle(seed=options.seed).select(range(options.num_prompts))
    check_prompts(dataset, "dataset")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer is a {type(tokenizer).__name__}; a probe needs a tokenizer")
    if not isinstance(dataset[0]["prompt"], str) and tokenizer.chat_template is None:
        raise ValueError("the prompts are conversations, but the tokenizer has no chat template")
    return dataset


def check_model(model: Any, options: ProbeOptions) -> Any:
    """Return the decoder, in evaluation mode, that sampling and gradients use."""
    plain = decoder(model)
    if missing := missing_inputs(plain):
        raise TypeError(f"{type(plain).__name__} takes no {', '.join(missing)}, which a probe needs")
    return plain.eval()


def check_layers(
    model: Any, layers: dict[str, nn.Module], tokenizer: Any, data: Dataset, options: ProbeOptions
) -> None:
    """Sketch two short responses, so that a layer that cannot be sketched fails before anything is sampled."""
    ids = prompt_ids(tokenizer, [data[0]["prompt"]], options.chat_template_kwargs)[0][:8]
    with GradientSketch(model, layers, size=1) as sketch:
        responses = [ids[:2], ids[:1]]
        score_responses(model, sketch, [ids, ids], responses, temperature=1.0, batch_tokens=64)


def check_rewards(rewards: Tensor) -> None:
    """Reject rewards that no estimator can learn from, before gradients are computed."""
    valid = is_scored(rewards)
    if not valid.any():
        raise ValueError(
            f"no response to any of the {len(rewards)} prompts was scored: every reward is None. Reward functions "
            "return None if they cannot parse the reference answer"
        )
    if not has_spread(rewards, valid).any():
        values = rewards[valid].unique()
        found = f"all are {values[0]:g}" if len(values) == 1 else "they differ only between prompts"
        raise ValueError(
            f"the {rewards.shape[1]} responses to each of the {len(rewards)} prompts have equal rewards ({found}), so "
            "there is nothing to compare; choose prompts of another difficulty, more responses, or another reward"
        )


def suggested_temperature(
    sampler_at: Callable[[float], Sampler], data: Dataset, options: ProbeOptions
) -> tuple[SuggestedTemperature | None, str]:
    """Return a temperature with the target entropy, or why there is none."""
    if options.target_entropy is None:
        return None, ""
    try:
        return suggest_temperature(
            sampler_at,
            data[:TEMPERATURE_PROMPTS]["prompt"],
            target_entropy=options.target_entropy,
            tolerance=options.target_entropy / 20,
            most_steps=TEMPERATURE_STEPS,
            seed=options.seed,
        ), ""
    except ValueError as error:
        return None, f"none: {error}"


def settings_of(
    model: Any, options: ProbeOptions, layers: dict[str, nn.Module], sample: Sample, reward_names: list[str]
) -> dict[str, Any]:
    """Return what the numbers depend on."""
    sketched = sum(parameter.numel() for each in layers.values() for parameter in each.parameters(recurse=False))
    return asdict(options) | {
        "model": model.config._name_or_path,
        "reward_funcs": reward_names,
        "metrics": list(sample.metrics),
        "estimators": [str(each) for each in options.estimators],
        "sketched_layers": len(layers),
        "sketched_parameters": sketched,
        "parameters": model.num_parameters(),
        "sketch_numbers_per_response": sample.scores.shape[-1],
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }

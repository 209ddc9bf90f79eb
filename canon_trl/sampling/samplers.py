"""Sample responses to prompts outside of training, with a transformers model or a vLLM engine."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, PreTrainedModel, StopStringCriteria
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from canon_trl.sampling.shared_prefix import Step, sample_tokens

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Response:
    """A response of a model.

    Attributes:
        ids: its tokens, including the one that ended it.
        truncated: whether it was cut off at the maximum length.
        entropy: mean over its tokens, in nats, if the sampler was asked for entropies; see the samplers.
    """

    ids: list[int]
    truncated: bool = False
    entropy: float | None = None


# (prompts, seed) -> the responses to every prompt
Sampler = Callable[[Sequence[Prompt], int], list[list[Response]]]


def check_distribution(
    temperature: float, top_p: float, top_k: int, min_p: float | None = None, repetition_penalty: float = 1.0
) -> None:
    """Check the sampling options, before a model is loaded."""
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r} must be positive")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p!r} must lie in (0, 1]")
    if top_k < 0:
        raise ValueError(f"top_k={top_k!r} must be at least 0; 0 samples from all tokens")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p={min_p!r} must lie in [0, 1]")
    if not 0 < repetition_penalty < math.inf:
        raise ValueError(f"repetition_penalty={repetition_penalty!r} must be positive and finite; 1 is no penalty")


def prompt_ids(
    tokenizer: Any, prompts: Sequence[Prompt], chat_template_kwargs: Mapping[str, Any] | None = None
) -> list[list[int]]:
    """Tokenize prompts as TRL's trainers do, conversations through the chat template.

    Args:
        tokenizer: needs a chat template if there are conversations.
        prompts: texts or conversations.
        chat_template_kwargs: further arguments of the template, such as `enable_thinking`.
    """

    def ids(prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return tokenizer(prompt)["input_ids"]
        options = {"add_generation_prompt": True, "return_dict": True}
        return tokenizer.apply_chat_template(prompt, **options, **(chat_template_kwargs or {}))["input_ids"]

    return [ids(prompt) for prompt in prompts]


def missing_inputs(model: PreTrainedModel) -> list[str]:
    """List the inputs of sampling that the forward pass of a model does not take."""
    taken = {*inspect.signature(type(model).forward).parameters}
    if "cache" in taken:  # the name since transformers 5.24, whose models still accept the old one
        taken.add("past_key_values")
    return [name for name in ("position_ids", "past_key_values", "logits_to_keep") if name not in taken]


def cache_can_drop_rows(model: Any) -> bool:
    """Tell whether all layers cache keys and values of each row, and no state of another kind."""
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return not model._is_stateful and all(type(layer) in plain for layer in DynamicCache(config=model.config).layers)


def check_model(model: PreTrainedModel) -> None:
    """Reject a model that [`TransformersSampler`] cannot sample from."""
    name = type(model).__name__
    if missing := missing_inputs(model):
        raise TypeError(f"{name} takes no {', '.join(missing)}; sample from it with vLLM")
    if not cache_can_drop_rows(model):
        raise TypeError(f"the cache of {name} cannot drop rows; sample from it with vLLM")


def warpers(
    temperature: float, top_p: float, top_k: int, min_p: float | None, repetition_penalty: float
) -> LogitsProcessorList:
    """Make the processors of logits that these options ask for, in the order of `generate`."""
    chosen = LogitsProcessorList()
    if repetition_penalty != 1:
        chosen.append(RepetitionPenaltyLogitsProcessor(float(repetition_penalty)))
    chosen.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        chosen.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chosen.append(TopPLogitsWarper(top_p))
    if min_p is not None:
        chosen.append(MinPLogitsWarper(min_p))
    return chosen


class TransformersSampler:
    """Samples with a transformers model and drops finished responses from the batch.

    `generate` keeps every response in the batch until the longest has ended, and processes a prompt once per response.
    Here each prompt is processed once and finished responses leave the batch, which pays off when prompts have many
    responses of different lengths. Tokens are drawn from a separate generator. The model is put into evaluation mode.

    Args:
        model: on its device; a decoder whose cache can drop rows, as with any plain attention.
        tokenizer: needs a padding token.
        num_samples: responses per prompt.
        max_new_tokens: maximum number of tokens per response.
        temperature, top_p, top_k, min_p, repetition_penalty: as for `generate`; `top_k=0` samples from all tokens. The
            penalty covers the tokens of the prompt, but not its padding.
        stop_strings: texts that end a response, in addition to the end tokens in the model's generation config.
        chat_template_kwargs: see [`prompt_ids`].
        entropies: whether to compute the entropy of responses: the mean over their tokens of the exact entropy of the
            distribution that the token was drawn from, after all of these options.

    Raises:
        TypeError: the forward pass of the model takes no `position_ids`, `past_key_values` or `logits_to_keep`, or its
            cache cannot drop rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        num_samples: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop_strings: Sequence[str] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        entropies: bool = False,
    ) -> None:
        check_model(model)
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._num_samples = num_samples
        self._max_new_tokens = max_new_tokens
        self._entropies = entropies
        self._chat_template_kwargs = chat_template_kwargs
        ends = model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        self._ends = torch.tensor(sorted({*ends, tokenizer.eos_token_id}), device=model.device)
        self._stops = StopStringCriteria(tokenizer, list(stop_strings)) if stop_strings else None
        self._warpers: Any = warpers(temperature, top_p, top_k, min_p, repetition_penalty)

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> list[list[Response]]:
        device = self._model.device
        ids = prompt_ids(self._tokenizer, prompts, self._chat_template_kwargs)
        batch = self._tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(device)
        generator = torch.Generator(device).manual_seed(seed)

        def choose(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
            # Penalties read the tokens, so the last token replaces padding.
            is_text = torch.arange(step.text.shape[1], device=device) >= step.padding.unsqueeze(1)
            text = step.text.where(is_text, step.text[:, -1:])
            probs = self._warpers(text, step.logits.float()).softmax(dim=-1)
            tokens = torch.multinomial(probs, 1, generator=generator).squeeze(1)
            return tokens, {"entropies": torch.special.entr(probs).sum(dim=-1)} if self._entropies else {}

        texts, attention = (
            batch[name].repeat_interleave(self._num_samples, dim=0) for name in ("input_ids", "attention_mask")
        )
        sampled = sample_tokens(
            self._model,
            texts,
            attention,
            choose,
            max_new_tokens=self._max_new_tokens,
            ends=self._ends,
            stops=self._stops,
        )
        means = [values["entropies"].mean().item() if values else None for values in sampled.values]
        responses = [
            Response(ids, not ended, mean) for ids, ended, mean in zip(sampled.ids, sampled.ended, means, strict=True)
        ]
        return [responses[first : first + self._num_samples] for first in range(0, len(responses), self._num_samples)]


class VLLMSampler:
    """Samples with a vLLM engine.

    Args:
        engine: a `vllm.LLM`. For entropies it needs `logprobs_mode="processed_logprobs"`, the log-probabilities of the
            distribution that is sampled from.
        tokenizer: tokenizer of the model.
        num_samples: responses per prompt.
        entropies: whether to estimate the entropy of responses by the mean surprisal -log p of their tokens, since
            vLLM returns no logits. The expected surprisal of a token is the entropy.
        chat_template_kwargs: see [`prompt_ids`].
        options: options of `vllm.SamplingParams`, such as `max_tokens`, `temperature`, `top_p`, `top_k`, `stop`.
    """

    def __init__(
        self,
        engine: Any,
        tokenizer: Any,
        *,
        num_samples: int,
        entropies: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._chat_template_kwargs = chat_template_kwargs
        # vLLM looks for the `stop` strings in the detokenized text.
        self._options = {"n": num_samples, "detokenize": bool(options.get("stop")), **options}
        if entropies:
            self._options["logprobs"] = 0  # only that of the sampled token

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> list[list[Response]]:
        from vllm import SamplingParams

        # vLLM seeds response i of a prompt with the prompt's seed plus i, so the seeds of prompts are n apart.
        seeds = [(seed * 1_000_003 + place) * self._options["n"] % 2**31 for place, _ in enumerate(prompts)]
        parameters = [SamplingParams(seed=each, **self._options) for each in seeds]
        prompts_as_ids = prompt_ids(self._tokenizer, prompts, self._chat_template_kwargs)
        given = [{"prompt_token_ids": ids} for ids in prompts_as_ids]
        outputs = self._engine.generate(given, parameters, use_tqdm=False)
        return [[_response(written) for written in output.outputs] for output in outputs]


def _response(written: Any) -> Response:
    ids, logprob = list(written.token_ids), written.cumulative_logprob
    return Response(ids, written.finish_reason == "length", None if logprob is None else -logprob / len(ids))


def make_sampler(
    loaded: Any,
    tokenizer: Any,
    options: Any,
    *,
    use_vllm: bool,
    entropies: bool,
    temperature: float | None = None,
) -> Sampler:
    """Return a sampler with options that have their names in training.

    Args:
        loaded: a `transformers` model, or a vLLM engine if `use_vllm`.
        tokenizer: tokenizer of the model.
        options: an object with `num_samples`, `max_completion_length`, `temperature`, `top_p`, `top_k`, `min_p`,
            `repetition_penalty`, `stop_strings` and `chat_template_kwargs`.
        use_vllm, entropies: see [`VLLMSampler`].
        temperature: instead of that in `options`.
    """
    names = ("num_samples", "top_p", "repetition_penalty", "chat_template_kwargs")
    shared: dict[str, Any] = {name: getattr(options, name) for name in names} | {"entropies": entropies}
    shared["temperature"] = options.temperature if temperature is None else temperature
    length, top_k, min_p, stops = options.max_completion_length, options.top_k, options.min_p, options.stop_strings
    if not use_vllm:
        own: dict[str, Any] = {"max_new_tokens": length, "top_k": top_k, "min_p": min_p, "stop_strings": stops}
        return TransformersSampler(loaded, tokenizer, **shared, **own)
    # "All tokens" is -1 in vLLM and 0 in transformers.
    own = {"max_tokens": length, "top_k": top_k or -1, "min_p": min_p or 0.0, "stop": stops}
    return VLLMSampler(loaded, tokenizer, **shared, **own)

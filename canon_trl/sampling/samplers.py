"""Sample responses to prompts outside of training, with a transformers model or a vLLM engine."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, StopStringCriteria
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

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
        TypeError: the model takes no `position_ids`, which are needed for left padding.
    """

    KEEP_UNTIL = 0.75  # finished rows leave batch and cache when the share of unfinished rows falls below this

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
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise TypeError(f"{type(model).__name__} takes no position_ids; sample from it with vLLM")
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
        self._warpers = LogitsProcessorList()  # in the order of `generate`
        if repetition_penalty != 1:
            self._warpers.append(RepetitionPenaltyLogitsProcessor(float(repetition_penalty)))
        self._warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k:
            self._warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self._warpers.append(TopPLogitsWarper(top_p))
        if min_p is not None:
            self._warpers.append(MinPLogitsWarper(min_p))

    # Not `inference_mode`: training cannot use inference tensors that a model keeps, such as rotary frequencies.
    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], seed: int) -> list[list[Response]]:
        device = self._model.device
        ids = prompt_ids(self._tokenizer, prompts, self._chat_template_kwargs)
        batch = self._tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(device)
        generator = torch.Generator(device).manual_seed(seed)
        attention = batch["attention_mask"]
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        output = self._model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)
        cache, logits = output.past_key_values, output.logits[:, -1].repeat_interleave(self._num_samples, dim=0)
        cache.batch_repeat_interleave(self._num_samples)
        attention = attention.repeat_interleave(self._num_samples, dim=0)
        text = batch["input_ids"].repeat_interleave(self._num_samples, dim=0)  # prompt and response so far

        count = len(prompts) * self._num_samples
        written = torch.zeros(count, self._max_new_tokens, dtype=torch.long, device=device)
        lengths = torch.zeros(count, dtype=torch.long, device=device)
        entropies = torch.zeros(count, device=device)
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        rows = torch.arange(count, device=device)  # the index of each row's response
        alive = torch.ones(count, dtype=torch.bool, device=device)
        for step in range(self._max_new_tokens):
            # Penalties read the tokens, so the last token replaces padding.
            warped = self._warpers(text.where(attention.bool(), text[:, -1:]), logits.float())
            probs = warped.softmax(dim=-1)
            tokens = torch.multinomial(probs, 1, generator=generator)
            written[rows, step] = tokens.squeeze(1)
            lengths[rows] += alive
            if self._entropies:
                entropies[rows] += torch.special.entr(probs).sum(dim=-1) * alive
            text = torch.cat([text, tokens], dim=1)
            alive &= ~torch.isin(tokens.squeeze(1), self._ends)
            if self._stops is not None:
                alive &= ~self._stops(text, None)
            ended[rows] = ~alive
            share = alive.float().mean().item()
            if share == 0 or step + 1 == self._max_new_tokens:
                break
            attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
            if share < self.KEEP_UNTIL:
                cache.batch_select_indices(alive.nonzero().squeeze(1))
                rows, tokens, text = rows[alive], tokens[alive], text[alive]
                attention, alive = attention[alive], alive[alive]
            positions = attention.sum(dim=1, keepdim=True) - 1
            output = self._model(
                input_ids=tokens, attention_mask=attention, position_ids=positions, past_key_values=cache
            )
            logits = output.logits[:, -1]
        means = (entropies / lengths).tolist() if self._entropies else [None] * count
        responses = [
            Response(ids[:length], not whole, mean)
            for ids, length, whole, mean in zip(written.tolist(), lengths.tolist(), ended.tolist(), means, strict=True)
        ]
        return [responses[first : first + self._num_samples] for first in range(0, count, self._num_samples)]


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

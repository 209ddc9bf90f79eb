"""Stage 1 of A*-PO: what the reference model earns on every prompt (https://huggingface.co/papers/2505.20686, Sec. 3).

Prompts are sampled in chunks. What a chunk gives is a function of the chunk and the seed, whichever rank samples it
and whatever happened before; and it is on disk as soon as it is known. So a run that was killed goes on with the
chunks that are missing, on as many ranks as there are then, and ends with the same numbers.
"""

import asyncio
import inspect
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import LogitsProcessorList, PreTrainedModel
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from canon_trl.rollout import weighted_reward

Prompt = str | list[dict[str, Any]]

# (prompts, seed) -> for every prompt, the token ids of its responses
Sampler = Callable[[Sequence[Prompt], int], list[list[list[int]]]]


class RewardLog:
    """The rewards of chunks of prompts, a line each, appended by every rank to a file of its own.

    Args:
        folder: where the files are; made if it is missing.
        settings: what the numbers depend on; kept beside them.
        rank: of this process.

    Raises:
        ValueError: the folder holds numbers that were made with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, rank: int = 0) -> None:
        self._folder = folder
        self._file = folder / f"rewards-{rank:05d}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        settings_file = folder / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if settings_file.exists():
            found = json.loads(settings_file.read_text())
            if changed := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
                differences = ", ".join(f"{name}={found.get(name)!r}, not {wanted.get(name)!r}" for name in changed)
                raise ValueError(f"{folder} was begun with {differences}; name another output_dir or delete it")
        elif rank == 0:
            partial = folder / "settings.json.partial"
            partial.write_text(json.dumps(wanted, indent=1))
            partial.replace(settings_file)
        if self._file.exists():  # a kill may have torn the last line
            whole = self._file.read_bytes()
            os.truncate(self._file, whole.rfind(b"\n") + 1)

    def append(self, chunk: int, rewards: list[list[float | None]]) -> None:
        """Note the rewards of a chunk for good, one list a prompt."""
        with self._file.open("a") as file:
            file.write(json.dumps({"chunk": chunk, "rewards": rewards}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[int, list[list[float | None]]]:
        """The rewards of all ranks by chunk."""
        known = {}
        for path in sorted(self._folder.glob("rewards-*.jsonl")):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    entry = json.loads(line)
                    known[entry["chunk"]] = entry["rewards"]
        return known


def missing_chunks(dataset: Dataset, log: RewardLog, *, chunk_size: int) -> list[int]:
    """The chunks whose rewards are not known yet; all ranks must have asked before any of them samples."""
    known = log.read()
    return [chunk for chunk in range(-(-len(dataset) // chunk_size)) if chunk not in known]


def estimate_rewards(
    dataset: Dataset,
    sample: Sampler,
    score: Callable[[list[dict[str, Any]], list[list[int]]], list[float | None]],
    log: RewardLog,
    *,
    chunks: Iterable[int],
    chunk_size: int,
    seed: int,
) -> None:
    """Sample and score chunks of prompts into the log.

    Args:
        dataset: with a column `prompt`.
        sample: responses of the reference model, see `Sampler`.
        score: `(rows, responses) -> rewards`, a row and a response each.
        log: of the rewards.
        chunks: which ones, this rank's share of the missing ones.
        chunk_size: prompts that are sampled at a time.
        seed: of the sampling.
    """
    for chunk in chunks:
        rows = list(dataset.select(range(chunk * chunk_size, min((chunk + 1) * chunk_size, len(dataset)))))
        responses = sample([row["prompt"] for row in rows], (seed * 1_000_003 + chunk) % 2**63)
        counts = [len(given) for given in responses]
        repeated = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
        rewards = iter(score(repeated, [response for given in responses for response in given]))
        log.append(chunk, [[next(rewards) for _ in range(count)] for count in counts])


def collect_rewards(dataset: Dataset, log: RewardLog) -> Dataset:
    """The dataset with the column `rewards`, a list for every prompt.

    Raises:
        ValueError: the log lacks prompts.
    """
    known = log.read()
    rewards = [row for chunk in sorted(known) for row in known[chunk]]
    if len(rewards) != len(dataset) or sorted(known) != list(range(len(known))):
        raise ValueError(f"{len(rewards)} of {len(dataset)} prompts have rewards; run the estimation to its end")
    if "rewards" in dataset.column_names:
        dataset = dataset.remove_columns("rewards")
    return dataset.add_column("rewards", rewards)


@dataclass(frozen=True)
class Scorer:
    """Rewards of responses by reward functions in TRL's signature, summed with their weights.

    Args:
        reward_funcs: functions, synchronous or not; reward models are not.
        tokenizer: turns token ids into text.
        weights: one a function; default 1.

    Raises:
        ValueError: the weights are not one a function.
        TypeError: a reward function is none.
    """

    reward_funcs: Sequence[Callable[..., Any]]
    tokenizer: Any
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != len(self.reward_funcs):
            raise ValueError(
                f"reward_weights={list(self.weights)} must be one for each of the {len(self.reward_funcs)} functions"
            )
        for function in self.reward_funcs:
            if not callable(function) or isinstance(function, nn.Module):
                raise TypeError(f"reward_funcs has {function!r}; values are estimated with reward functions alone")

    def __call__(self, rows: list[dict[str, Any]], responses: list[list[int]]) -> list[float | None]:
        texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
        conversational = not isinstance(rows[0]["prompt"], str)
        completions = [[{"role": "assistant", "content": text}] for text in texts] if conversational else texts
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "completion")}
        given = {"prompts": [row["prompt"] for row in rows], "completions": completions, "completion_ids": responses}
        given |= {"trainer_state": None, "log_extra": ignore, "log_metric": ignore}  # which TRL hands over, too
        by_function = []
        for function in self.reward_funcs:
            rewards = function(**given, **columns)
            rewards = asyncio.run(awaited(rewards)) if inspect.isawaitable(rewards) else rewards
            by_function.append([math.nan if reward is None else float(reward) for reward in rewards])
        weights = torch.tensor(self.weights or [1.0] * len(self.reward_funcs), dtype=torch.float64)
        total = weighted_reward(torch.tensor(by_function, dtype=torch.float64).T, weights)
        return [None if math.isnan(value) else value for value in total.tolist()]


def ignore(*args: Any) -> None:
    """What a reward function logs has no table here."""


async def awaited(value: Any) -> Any:
    return await value


def prompt_ids(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of prompts, of conversations through the chat template."""
    return [
        tokenizer(prompt)["input_ids"]
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        for prompt in prompts
    ]


class TransformersSampler:
    """Responses of a transformers model, of which those that have ended cost nothing any more.

    `generate` keeps every response in the batch until the longest has ended, and reads a prompt once for each of its
    responses. Values take many responses of very different lengths, so here a prompt is read once, and responses that
    have ended leave the batch.

    Args:
        model: the reference model, on its device; a decoder whose cache can drop rows, as all plain attention can.
        tokenizer: with a padding token.
        num_samples: responses to a prompt.
        max_new_tokens: tokens of a response at most.
        temperature, top_p, top_k: as for `generate`; `top_k=0` samples from all tokens.

    Raises:
        TypeError: the model takes no `position_ids`, which tell left padding from text.
    """

    KEEP_UNTIL = 0.75  # share of the rows that must be alive; below it the others are dropped from batch and cache

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
    ) -> None:
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise TypeError(f"{type(model).__name__} takes no position_ids; estimate its values with use_vllm=True")
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._num_samples = num_samples
        self._max_new_tokens = max_new_tokens
        ends = model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        self._ends = torch.tensor(sorted({*ends, tokenizer.eos_token_id}), device=model.device)
        self._warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
        if top_k:
            self._warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self._warpers.append(TopPLogitsWarper(top_p))

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt], seed: int) -> list[list[list[int]]]:
        device = self._model.device
        batch = self._tokenizer.pad(
            {"input_ids": prompt_ids(self._tokenizer, prompts)}, padding_side="left", return_tensors="pt"
        ).to(device)
        generator = torch.Generator(device).manual_seed(seed)
        attention = batch["attention_mask"]
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        output = self._model(**batch, position_ids=positions, use_cache=True, logits_to_keep=1)
        cache, logits = output.past_key_values, output.logits[:, -1].repeat_interleave(self._num_samples, dim=0)
        cache.batch_repeat_interleave(self._num_samples)
        attention = attention.repeat_interleave(self._num_samples, dim=0)

        count = len(prompts) * self._num_samples
        written = torch.zeros(count, self._max_new_tokens, dtype=torch.long, device=device)
        lengths = torch.zeros(count, dtype=torch.long, device=device)
        rows = torch.arange(count, device=device)  # which response a row of the batch is
        alive = torch.ones(count, dtype=torch.bool, device=device)
        for step in range(self._max_new_tokens):
            probs = self._warpers(None, logits.float()).softmax(dim=-1)
            tokens = torch.multinomial(probs, 1, generator=generator)
            written[rows, step] = tokens.squeeze(1)
            lengths[rows] += alive
            alive &= ~torch.isin(tokens.squeeze(1), self._ends)
            share = alive.float().mean().item()
            if share == 0 or step + 1 == self._max_new_tokens:
                break
            attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
            if share < self.KEEP_UNTIL:
                cache.batch_select_indices(alive.nonzero().squeeze(1))
                rows, tokens, attention, alive = rows[alive], tokens[alive], attention[alive], alive[alive]
            positions = attention.sum(dim=1, keepdim=True) - 1
            output = self._model(
                input_ids=tokens, attention_mask=attention, position_ids=positions, past_key_values=cache
            )
            logits = output.logits[:, -1]
        responses = [ids[:length] for ids, length in zip(written.tolist(), lengths.tolist(), strict=True)]
        return [responses[first : first + self._num_samples] for first in range(0, count, self._num_samples)]


class VLLMSampler:
    """Responses by a vLLM engine.

    Args:
        engine: a `vllm.LLM` of the reference model.
        tokenizer: of the model.
        num_samples: responses to a prompt.
        options: of `vllm.SamplingParams`, such as `max_tokens`, `temperature`, `top_p`, `top_k`.
    """

    def __init__(self, engine: Any, tokenizer: Any, *, num_samples: int, **options: Any) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._options = {"n": num_samples, "detokenize": False, **options}

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> list[list[list[int]]]:
        from vllm import SamplingParams

        # vLLM gives response i of a prompt the prompt's seed plus i, so the seeds of prompts keep their distance.
        seeds = [(seed * 1_000_003 + place) * self._options["n"] % 2**31 for place, _ in enumerate(prompts)]
        parameters = [SamplingParams(seed=each, **self._options) for each in seeds]
        given = [{"prompt_token_ids": ids} for ids in prompt_ids(self._tokenizer, prompts)]
        outputs = self._engine.generate(given, parameters, use_tqdm=False)
        return [[list(response.token_ids) for response in output.outputs] for output in outputs]

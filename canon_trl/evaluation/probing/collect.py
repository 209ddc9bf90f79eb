"""Sample and score responses in chunks, so that a killed probe resumes where it stopped."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from trl.trainer.utils import get_callable_name

from canon_trl.evaluation.probing.gradients import score_responses
from canon_trl.evaluation.probing.options import ProbeOptions
from canon_trl.evaluation.probing.sketch import GradientSketch
from canon_trl.metrics import RANDOM, ResponseMetric, random_metric
from canon_trl.rollout import weighted_reward
from canon_trl.sampling.chunks import ChunkLog, atomic_write, chunk_records, collect_records, missing_chunks
from canon_trl.sampling.samplers import Response, Sampler, prompt_ids
from canon_trl.sampling.scoring import Scorer

SAMPLE_DEPENDS_ON = (
    *("num_samples", "max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("stop_strings", "chat_template_kwargs", "chunk_prompts", "seed"),
)

FOLDER_OPTION = "probe_dir (in Python: output_dir)"


@dataclass(frozen=True)
class Sample:
    """P prompts with G responses each, F reward functions.

    Attributes:
        rewards: `(P, G)` in float64, the weighted sum; NaN where no function scored the response.
        rewards_per_func: `(P, G, F)`.
        lengths: `(P, G)`, in tokens.
        truncated: `(P, G)` bool.
        surprisals: `(P, G)`, -log p of the whole response, in nats.
        metrics: by name, `(P, G)` each.
        scores: `(P, G, D)`, sketched gradients of the log-probabilities.
    """

    rewards: Tensor
    rewards_per_func: Tensor
    lengths: Tensor
    truncated: Tensor
    surprisals: Tensor
    metrics: dict[str, Tensor]
    scores: Tensor


class Collector:
    """Samples responses and scores them, each chunk once.

    Args:
        dataset: the prompts.
        tokenizer: tokenizer of the model.
        reward_funcs: functions in TRL's signature.
        options: the options of the probe.
        folder: folder for the progress.
        fingerprint: identifies the model, so that progress of another model is not resumed.
        reward_settings: options of the reward functions, so that progress with other options is not resumed.
        progress: whether to show progress bars.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Any,
        reward_funcs: Sequence[Callable[..., Any]],
        options: ProbeOptions,
        folder: Path,
        fingerprint: str,
        *,
        reward_settings: Mapping[str, Any] | None = None,
        progress: bool,
    ) -> None:
        self.dataset = dataset
        self.tokenizer = tokenizer
        self._options = options
        self._folder = folder
        self._progress = progress
        shared = (options.reward_time_limit, options.chat_template_kwargs)
        self._scorers = [Scorer([function], tokenizer, None, *shared) for function in reward_funcs]
        Scorer(reward_funcs, tokenizer, options.reward_weights)  # checks the weights
        self.reward_names = [get_callable_name(function) for function in reward_funcs]
        self.weights = torch.tensor(options.reward_weights or [1.0] * len(reward_funcs), dtype=torch.float64)
        hash_of = datasets.fingerprint.Hasher.hash
        self._settings = {name: getattr(options, name) for name in SAMPLE_DEPENDS_ON} | {
            "model": fingerprint,
            "prompts": hash_of(list(dataset)),
            "chat_template": tokenizer.chat_template and hash_of(tokenizer.chat_template),
            "reward_funcs": self.reward_names,
            "reward_settings": dict(reward_settings) if reward_settings else None,
        }
        self._samples = ChunkLog(folder / "samples", self._settings, field=FOLDER_OPTION)

    def sample(self, sampler: Sampler) -> None:
        """Sample and reward the missing responses."""
        sizes = {"chunk_size": self._options.chunk_prompts, "seed": self._options.seed}
        chunks = missing_chunks(self.dataset, self._samples, chunk_size=sizes["chunk_size"])
        for chunk in self._shown(chunks, "sampling"):
            self._samples.append(chunk, chunk_records(self.dataset, sampler, self._record, chunk, **sizes))

    def rewards(self) -> tuple[Tensor, Tensor]:
        """Return the rewards per function `(P, G, F)` and their weighted sum `(P, G)`."""
        records = collect_records(self.dataset, self._samples)
        per_func = torch.tensor(
            [
                [[torch.nan if each is None else each for each in one] for one in record["rewards"]]
                for record in records
            ],
            dtype=torch.float64,
        )
        return per_func, weighted_reward(per_func.flatten(0, 1), self.weights).view(per_func.shape[:2])

    def score(
        self,
        model: Any,
        layers: dict[str, nn.Module],
        metrics: Mapping[str, ResponseMetric | None],
    ) -> Sample:
        """Compute metrics and sketched scores of the responses, and return the whole sample."""
        options, records = self._options, collect_records(self.dataset, self._samples)
        settings = {"layers": options.layers, "sketch_size": options.sketch_size, "metrics": list(metrics)}
        log = ChunkLog(self._folder / "scores", self._settings | settings, field=FOLDER_OPTION)
        chunks = missing_chunks(self.dataset, log, chunk_size=options.chunk_prompts)
        functions = {name: metric for name, metric in metrics.items() if metric is not None}
        with GradientSketch(model, layers, size=options.sketch_size, seed=options.seed) as sketch:
            for chunk in self._shown(chunks, "gradients"):
                place = slice(chunk * options.chunk_prompts, (chunk + 1) * options.chunk_prompts)
                rows = list(self.dataset.select(range(len(self.dataset))[place]))
                scores, found = self._scored(model, sketch, rows, records[place], functions)
                with atomic_write(self._scores_of(chunk)) as file:
                    save_file({"scores": scores}, file)
                log.append(chunk, found)
        return self._gathered(records, collect_records(self.dataset, log), metrics)

    def _scored(
        self,
        model: Any,
        sketch: GradientSketch,
        rows: list[dict[str, Any]],
        records: list[dict[str, Any]],
        metrics: Mapping[str, ResponseMetric],
    ) -> tuple[Tensor, list[dict[str, list[float]]]]:
        """Return the scores of a chunk, and its surprisals and metrics by prompt."""
        size = self._options.num_samples
        prompts = prompt_ids(self.tokenizer, [row["prompt"] for row in rows], self._options.chat_template_kwargs)
        found = score_responses(
            model,
            sketch,
            [ids for ids in prompts for _ in range(size)],
            [ids for record in records for ids in record["ids"]],
            temperature=self._options.temperature,
            batch_tokens=self._options.batch_tokens,
            padding=self.tokenizer.pad_token_id or 0,
        )
        responses = [[Response(ids) for ids in record["ids"]] for record in records]
        numbers = found.metrics(metrics, self._scorers[0].inputs(rows, responses))
        numbers["surprisals"] = found.surprisals
        by_prompt = {name: values.view(len(rows), size).tolist() for name, values in numbers.items()}
        return found.scores, [
            {name: values[place] for name, values in by_prompt.items()} for place in range(len(rows))
        ]

    def _gathered(
        self,
        records: list[dict[str, Any]],
        scored: list[dict[str, list[float]]],
        metrics: Mapping[str, ResponseMetric | None],
    ) -> Sample:
        per_func, rewards = self.rewards()
        size = self._options.chunk_prompts
        scores = torch.cat([load_file(self._scores_of(chunk))["scores"] for chunk in range(-(-len(records) // size))])
        return Sample(
            rewards=rewards,
            rewards_per_func=per_func,
            lengths=torch.tensor([[len(ids) for ids in record["ids"]] for record in records]),
            truncated=torch.tensor([record["truncated"] for record in records]),
            surprisals=torch.tensor([each["surprisals"] for each in scored]),
            metrics={
                name: random_metric(rewards.shape, seed=self._options.seed, step=0)
                if metric is None
                else torch.tensor([each[name] for each in scored])
                for name, metric in metrics.items()
            },
            scores=scores.view(*rewards.shape, -1),
        )

    def _record(
        self, rows: list[dict[str, Any]], responses: Sequence[Sequence[Response]]
    ) -> list[dict[str, list[Any]]]:
        by_function = [score(rows, responses) for score in self._scorers]
        return [
            {
                "ids": [response.ids for response in given],
                "truncated": [response.truncated for response in given],
                "rewards": [list(each) for each in zip(*rewards, strict=True)],
            }
            for given, *rewards in zip(responses, *by_function, strict=True)
        ]

    def _scores_of(self, chunk: int) -> Path:
        return self._folder / "scores" / f"{chunk:05d}.safetensors"

    def _shown(self, chunks: list[int], what: str) -> Iterator[int]:
        """Yield the chunks with a progress bar that counts responses."""
        samples, sizes = self._options.num_samples, self._options.chunk_prompts
        with tqdm(total=len(self.dataset) * samples, desc=what, unit="responses", disable=not self._progress) as bar:
            counts = {
                chunk: samples * len(range(len(self.dataset))[chunk * sizes : (chunk + 1) * sizes])
                for chunk in range(-(-len(self.dataset) // sizes))
            }
            bar.update(sum(counts.values()) - sum(counts[chunk] for chunk in chunks))
            for chunk in chunks:
                yield chunk
                bar.update(counts[chunk])


def model_fingerprint(model: nn.Module) -> str:
    """Return a hash of the first values of every parameter, which changes when a model is trained."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def with_control(metrics: Mapping[str, ResponseMetric | None]) -> dict[str, ResponseMetric | None]:
    """Add the random metric, which shows what a split at random gives."""
    return {**metrics, RANDOM: None}

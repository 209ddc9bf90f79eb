"""The phases in which TRL makes a rollout, and the values that they record."""

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from canon_trl.hook.generation_recorder import NoRecorder
from canon_trl.hook.phases import Phase
from canon_trl.hook.scoring_pass import score_responses
from canon_trl.sampling.group_collector import SampledBatch

# What `_generate` returns, in order.
GENERATED = (
    "prompt_ids",
    "completion_ids",
    "tool_mask",
    "completions",
    "sampling_log_probs",
    "extra_fields",
    "images",
    "tool_images",
)

# Columns of a row that metrics receive under other names.
RESERVED_COLUMNS = ("prompt", "completion", "completion_ids")


class StopAfterRewards(Exception):
    """Ends a rollout after its responses have been rewarded."""


class RolloutPhase(Phase):
    """TRL makes a rollout. Records values of this rank's rows, unless stated otherwise.

    Args:
        policy: the model whose scoring pass is recorded. The head of the reference model computes no entropy.
        recorder: records token values during generation.
        scores: whether anything reads entropies or log-probabilities of the rollout.

    Attributes:
        completion_ids: token ids of each response.
        tool_mask: 1 on the tokens that the model wrote, per response; `None` if it wrote all.
        sampling_log_probs: per response, as reported by the sampler; `None` if it reported none.
        recorded: the records of each response by name, `(T,)` each.
        rewards_per_func: `(N, F)`, of all ranks; set once they are computed.
        drawn: `(M, F)`, also of responses that dynamic sampling replaced.
        metric_inputs: what a metric can read in addition to token values, by name.
        token_values: those of `entropies` and `log_probs` that are read, `(B, T)` each.
        passes: `entropies` and `log_probs` of each scoring pass so far, `(B, T)` each.
        answers: numbers for the answers in the responses, by the names under which policy rewards read them.
        answer_error: raised while the answers were extracted.
        shares_prompts: whether the first scoring pass reads each prompt once, see [`score_responses`].
    """

    def __init__(self, policy: nn.Module, recorder: NoRecorder, *, scores: bool) -> None:
        self.policy = policy
        self.recorder = recorder
        self.scores = scores
        self.completion_ids: list[list[int]] = []
        self.tool_mask: list[list[int]] | None = None
        self.sampling_log_probs: list[list[float | None]] | None = None
        self.recorded: list[dict[str, Tensor]] = []
        self.rewards_per_func: Tensor
        self.drawn: Tensor
        self.metric_inputs: dict[str, Any] = {}
        self.token_values: dict[str, Tensor] = {}
        self.passes: list[dict[str, Tensor]] = []
        self.answers: dict[str, Tensor] = {}
        self.answer_error: Exception | None = None
        self.shares_prompts = False

    @property
    def trained(self) -> Tensor | None:
        """`(N,)` bool, which responses of all ranks are trained on; `None` for all."""
        return None

    def generate(self, generate: Callable[..., tuple], prompts: list) -> tuple:
        with self.recorder:
            generated = generate(prompts)
        self.completion_ids, self.tool_mask, self.sampling_log_probs = generated[1], generated[2], generated[4]
        self.recorded = self.recorder.records_of(generated[1])
        return generated

    def score(self, score: Callable[..., tuple], model: Any, input_ids: Tensor, *args: Any, **options: Any) -> tuple:
        # A rollout_func may score before there are completions.
        if model is not self.policy or not self.scores or not self.completion_ids:
            return score(model, input_ids, *args, **options)
        attention_mask, width, *rest = args
        # TRL would score a completion that it masks as truncated as empty. Score all written tokens, and return the
        # zeros that TRL expects.
        written = self.written_mask(width, input_ids.device)
        trained = attention_mask[:, -width:].bool()
        attention_mask = torch.cat([attention_mask[:, :-width], written.to(attention_mask.dtype)], dim=1)
        options |= {"compute_entropy": True}
        if self.shares_prompts and not self.passes:  # a second pass is the reference's, which the loss reads
            score = partial(score_responses, score)
        log_probs, entropies, aux_loss = score(model, input_ids, attention_mask, width, *rest, **options)
        for_trl = log_probs.masked_fill(~trained, 0.0)
        self.passes.append({"entropies": entropies, "log_probs": log_probs})
        return for_trl, entropies, aux_loss

    def reward(self, calculate: Callable[..., Tensor], inputs: list, *args: Any) -> Tensor:
        return self.record_rewards(calculate(inputs, *args), inputs, *args)

    def record_rewards(self, rewards: Tensor, inputs: list, prompts: list, completions: list, ids: list) -> Tensor:
        """Record the rewards and their inputs, and return the rewards."""
        self.rewards_per_func = self.drawn = rewards
        columns = {key: [row[key] for row in inputs] for key in inputs[0] if key not in RESERVED_COLUMNS}
        self.metric_inputs = columns | {"prompts": prompts, "completions": completions, "completion_ids": ids}
        return rewards

    def written_mask(self, width: int, device: torch.device) -> Tensor:
        """True on every token of the completion, `(B, width)`, even if training masks it as truncated."""
        lengths = torch.tensor([len(ids) for ids in self.completion_ids], device=device)
        return torch.arange(width, device=device) < lengths.unsqueeze(1)

    def model_mask(self, width: int, device: torch.device) -> Tensor:
        """True on the tokens that the model wrote, `(B, width)`, and not on those of tools and environments."""
        written = self.written_mask(width, device)
        if self.tool_mask is None:
            return written
        return written & padded([torch.tensor(row, dtype=torch.bool) for row in self.tool_mask], width, device)

    def padded_records(self, width: int, device: torch.device) -> dict[str, Tensor]:
        """Return the values recorded during generation, by name, `(B, width)` each."""
        return {name: padded([row[name] for row in self.recorded], width, device) for name in self.recorded[0]}


class SamplingPhase(RolloutPhase):
    """TRL only generates and rewards responses: the rewards raise [`StopAfterRewards`].

    Attributes:
        generated: the parts that `_generate` returned, by the names in [`GENERATED`], with one entry per response.
    """

    def __init__(self, policy: nn.Module, recorder: NoRecorder) -> None:
        super().__init__(policy, recorder, scores=False)
        self.generated: dict[str, list | None] = {}

    def generate(self, generate: Callable[..., tuple], prompts: list) -> tuple:
        generated = super().generate(generate, prompts)
        # TRL copies the extra fields of a rollout_func into the rows before it computes rewards.
        self.generated = dict(zip(GENERATED, generated, strict=True))
        del self.generated["extra_fields"]
        self.generated["tool_images"] = self.generated["tool_images"] or None
        return generated

    def score(self, score: Callable[..., tuple], model: Any, input_ids: Tensor, *args: Any, **options: Any) -> tuple:
        if not self.completion_ids:
            return score(model, input_ids, *args, **options)
        nothing = torch.zeros(len(input_ids), args[1], device=input_ids.device)
        return nothing, nothing, None  # never read, since the rollout ends before

    def record_rewards(self, rewards: Tensor, *args: Any) -> Tensor:
        super().record_rewards(rewards, *args)
        raise StopAfterRewards


class ReplayPhase(RolloutPhase):
    """TRL makes a rollout of responses that have already been sampled and rewarded."""

    def __init__(self, policy: nn.Module, batch: SampledBatch, *, scores: bool) -> None:
        super().__init__(policy, NoRecorder(), scores=scores)
        self.batch = batch

    @property
    def trained(self) -> Tensor | None:
        return self.batch.trained

    def generate(self, generate: Callable[..., tuple], prompts: list) -> tuple:
        responses = self.batch.responses

        def part(name: str) -> Any:
            values = [response.generated[name] for response in responses]
            return None if all(value is None for value in values) else values

        parts = {name: part(name) for name in GENERATED if name != "extra_fields"} | {"extra_fields": {}}
        self.completion_ids, self.tool_mask = parts["completion_ids"], parts["tool_mask"]
        self.sampling_log_probs = parts["sampling_log_probs"]
        self.recorded = [response.recorded for response in responses]
        return tuple((parts[name] or []) if name == "tool_images" else parts[name] for name in GENERATED)

    def reward(self, calculate: Callable[..., Tensor], inputs: list, *args: Any) -> Tensor:
        rewards = self.record_rewards(self.batch.rewards_per_func, inputs, *args)
        self.drawn = self.batch.drawn
        return rewards


def padded(rows: list[Tensor], width: int, device: torch.device) -> Tensor:
    """Rows of different lengths as one tensor on the device, `(B, width)`, with zeros after each."""
    together = pad_sequence(rows, batch_first=True).to(device)
    return nn.functional.pad(together, (0, width - together.shape[1]))


def plain(value: Any) -> Any:
    """Convert a value to Python's own types; reward functions may put anything into the completions table."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # numpy's numbers and arrays, tensors
        return value.tolist()
    return value if value is None or isinstance(value, (str, int, float)) else str(value)

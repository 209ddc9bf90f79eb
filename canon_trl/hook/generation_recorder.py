"""Record entropies and log-probabilities from the logits that tokens are sampled from, without a scoring pass."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


class NoRecorder:
    """Records nothing."""

    def __enter__(self) -> "NoRecorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def records_of(self, completion_ids: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
        """Return no records for any completion."""
        return [{} for _ in completion_ids]


class GenerationRecorder(NoRecorder):
    """Records at every decoding step of `generate` what a scoring pass would compute afterwards.

    A forward hook on the causal language model sees the logits of the last position, `(B, V)`, before sampling:

        l = logits / temperature        H = -sum_v softmax(l)_v * log softmax(l)_v        log p = log softmax(l)[token]

    This is the distribution of the scoring pass: logit processors (top-k, repetition penalty) act later and are not
    part of it. The values agree with a scoring pass up to rounding, since a cached decoding step rounds differently.

    Args:
        model: the causal language model whose `generate` is called, without the wrappers around it.
        temperature: the sampling temperature.
        log_probs: whether to record the log-probabilities of the sampled tokens too.
    """

    def __init__(self, model: nn.Module, *, temperature: float, log_probs: bool) -> None:
        self._model = model
        self._temperature = temperature
        self._records_log_probs = log_probs
        self._entropies: list[Tensor] = []
        self._log_probs: list[Tensor] = []
        self._fed: list[Tensor] = []
        self._next_token_log_probs: Tensor  # of the previous step

    def __enter__(self) -> "GenerationRecorder":
        self._handle = self._model.register_forward_hook(self._record, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.remove()

    @torch.no_grad()
    def _record(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        logits = output.logits[:, -1].float() / self._temperature
        if self._entropies:  # every step but the first receives the token that was sampled last
            input_ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            self._fed.append(input_ids[:, -1])
        log_probs = logits.log_softmax(dim=-1)
        if self._records_log_probs:
            if self._fed:
                self._log_probs.append(self._log_prob_of(self._fed[-1]))
            self._next_token_log_probs = log_probs
        # A logit of minus infinity adds nothing to the entropy, but 0 times minus infinity would be NaN. entr would
        # take one more logarithm, the main cost of recording with a large vocabulary.
        finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
        self._entropies.append(-(finite.exp() * finite).sum(dim=-1))

    def _log_prob_of(self, tokens: Tensor) -> Tensor:
        return self._next_token_log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def records_of(self, completion_ids: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
        """Return the records of each completion: `entropies` in nats and, if requested, `log_probs`, `(T,)` each.

        Raises:
            RuntimeError: the records do not match the completions.
        """
        lengths = [len(ids) for ids in completion_ids]
        tokens = pad_sequence([torch.tensor(ids) for ids in completion_ids], batch_first=True)
        self._check(tokens, lengths)
        steps = self._entropies[: max(lengths)]  # in later steps this rank only waited for other ranks
        tokens = tokens.to(steps[0].device)
        values = {"entropies": torch.stack(steps, dim=1)}
        if self._records_log_probs:
            log_probs = self._log_probs[: len(steps) - 1]
            # The last token enters no further step, unless this rank had to wait.
            last = self._log_probs[len(steps) - 1 : len(steps)] or [self._log_prob_of(tokens[:, len(steps) - 1])]
            values["log_probs"] = torch.stack([*log_probs, *last], dim=1)
        return [{name: table[row, :length] for name, table in values.items()} for row, length in enumerate(lengths)]

    def _check(self, tokens: Tensor, lengths: Sequence[int]) -> None:
        (rows, width), steps = tokens.shape, len(self._entropies)
        matches = steps >= width and self._entropies[0].shape[0] == rows
        if matches and self._fed:
            fed = torch.stack(self._fed[:width], dim=1)
            written = torch.arange(fed.shape[1]) < torch.tensor(lengths).unsqueeze(1)
            matches = bool((fed.cpu() == tokens[:, : fed.shape[1]])[written].all())
        if not matches:
            raise RuntimeError(
                f"generation ran {steps} decoding steps that do not write the {rows} completions token by token, so "
                "its logits cannot be attributed; set entropy_source='forward'"
            )

"""Entropies and log-probabilities for free: taken from the logits that the tokens are sampled from."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


class NoRecorder:
    """Stands where nothing is recorded."""

    def __enter__(self) -> "NoRecorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def of(self, completion_ids: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
        """Of each completion nothing."""
        return [{} for _ in completion_ids]


class GenerationRecorder(NoRecorder):
    """While active, records at every decoding step of `generate` what a scoring pass would compute afterwards.

    A forward hook on the causal language model sees the logits of the last position, `(B, V)`, before sampling:

        l = logits / temperature        H = -sum_v softmax(l)_v * log softmax(l)_v        log p = log softmax(l)[token]

    That is the distribution of the scoring pass: logit processors (top-k, repetition penalty) act later and are not
    part of it. Agreement with a scoring pass is up to rounding, as a cached decoding step rounds differently.

    Args:
        model: the causal language model whose `generate` is called; wrappers around it may stay.
        temperature: the sampling temperature.
        log_probs: whether to record the sampled tokens' log-probabilities too.
    """

    def __init__(self, model: nn.Module, *, temperature: float, log_probs: bool) -> None:
        self._model = model
        self._temperature = temperature
        self._want_log_probs = log_probs
        self._entropies: list[Tensor] = []
        self._log_probs: list[Tensor] = []
        self._fed: list[Tensor] = []
        self._next_token_log_probs: Tensor  # of the step before

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
        if self._entropies:  # every step but the first is fed the token that was sampled last
            input_ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            self._fed.append(input_ids[:, -1])
        log_probs = logits.log_softmax(dim=-1)
        if self._want_log_probs:
            if self._fed:
                self._log_probs.append(self._of_token(self._fed[-1]))
            self._next_token_log_probs = log_probs
        # A logit of minus infinity has no part in an entropy, and 0 times minus infinity would be NaN. One logarithm
        # less than entr takes, which is what recording costs with a large vocabulary.
        finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
        self._entropies.append(-(finite.exp() * finite).sum(dim=-1))

    def _of_token(self, tokens: Tensor) -> Tensor:
        return self._next_token_log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def of(self, completion_ids: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
        """What was recorded of each completion: `entropies` in nats and, if wanted, `log_probs`, `(T,)` each.

        Raises:
            RuntimeError: what was recorded does not fit the completions.
        """
        lengths = [len(ids) for ids in completion_ids]
        tokens = pad_sequence([torch.tensor(ids) for ids in completion_ids], batch_first=True)
        self._check(tokens, lengths)
        steps = self._entropies[: max(lengths)]  # in any more of them this rank waited for others to finish
        tokens = tokens.to(steps[0].device)
        values = {"entropies": torch.stack(steps, dim=1)}
        if self._want_log_probs:
            log_probs = self._log_probs[: len(steps) - 1]
            # The last token is fed to no further step, unless a rank had to wait.
            last = self._log_probs[len(steps) - 1 : len(steps)] or [self._of_token(tokens[:, len(steps) - 1])]
            values["log_probs"] = torch.stack([*log_probs, *last], dim=1)
        return [{name: table[row, :length] for name, table in values.items()} for row, length in enumerate(lengths)]

    def _check(self, tokens: Tensor, lengths: Sequence[int]) -> None:
        (rows, width), steps = tokens.shape, len(self._entropies)
        attributable = steps >= width and self._entropies[0].shape[0] == rows
        if attributable and self._fed:
            fed = torch.stack(self._fed[:width], dim=1)
            written = torch.arange(fed.shape[1]) < torch.tensor(lengths).unsqueeze(1)
            attributable = bool((fed.cpu() == tokens[:, : fed.shape[1]])[written].all())
        if not attributable:
            raise RuntimeError(
                f"generation ran {steps} decoding steps that do not write the {rows} completions token by token, so "
                "its logits cannot be attributed; set entropy_source='forward'"
            )

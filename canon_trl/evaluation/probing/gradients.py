"""One forward and backward pass over responses: sketched scores, metrics and surprisals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from canon_trl.evaluation.probing.sketch import GradientSketch
from canon_trl.metrics import ResponseMetric, measure

Ids = Sequence[int]


@dataclass(frozen=True)
class Scored:
    """What a pass found about B responses.

    Attributes:
        scores: `(B, width)`, sketched gradients of the log-probabilities of whole responses.
        entropies, log_probs: `(B, T)`, per token in nats, at the sampling temperature; 0 on padding.
        mask: `(B, T)`, True on tokens of the response.
    """

    scores: Tensor
    entropies: Tensor
    log_probs: Tensor
    mask: Tensor

    @property
    def surprisals(self) -> Tensor:
        """-log p of whole responses, `(B,)`."""
        return -self.log_probs.double().sum(dim=1)

    def metrics(self, metrics: Mapping[str, ResponseMetric], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Compute metrics by name, `(B,)` each.

        Raises:
            ValueError: a metric does not return one finite number per response.
        """
        given = {**inputs, "entropies": self.entropies, "log_probs": self.log_probs, "mask": self.mask}
        found = {name: measure(metric, name, len(self.mask), given) for name, metric in metrics.items()}
        for name, values in found.items():
            if not values.isfinite().all():
                raise ValueError(f"metric {name!r} returned a number that is not finite")
        return found


def score_responses(
    model: PreTrainedModel,
    sketch: GradientSketch,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    temperature: float,
    batch_tokens: int,
    padding: int = 0,
) -> Scored:
    """Run one forward and backward pass over the responses, in batches of similar length.

    Args:
        model: on its device, in evaluation mode.
        sketch: an entered sketch of the model.
        prompts, responses: token ids, one of each per response.
        temperature: the one that the responses were sampled at.
        batch_tokens: maximum number of tokens per batch, padding included; a longer response is a batch of its own.
        padding: id of the padding token.
    """
    longest = max(map(len, responses))
    scores = torch.zeros(len(responses), sketch.width)
    entropies, log_probs = torch.zeros(len(responses), longest), torch.zeros(len(responses), longest)
    mask = torch.zeros(len(responses), longest, dtype=torch.bool)
    for rows in batches(prompts, responses, batch_tokens):
        heads, tails = [prompts[row] for row in rows], [responses[row] for row in rows]
        found, table = _token_numbers(model, sketch, heads, tails, temperature=temperature, padding=padding)
        width = found.shape[-1]
        mask[rows, :width] = table
        entropies[rows, :width], log_probs[rows, :width] = found
        scores[rows] = sketch.take()
    return Scored(scores, entropies, log_probs, mask)


def batches(prompts: Sequence[Ids], responses: Sequence[Ids], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of the responses in batches, shortest responses first."""
    rows: list[int] = []
    head = 0
    for row in sorted(range(len(responses)), key=lambda row: (len(responses[row]), len(prompts[row]))):
        head = max(head, len(prompts[row]))
        if rows and (len(rows) + 1) * (head + len(responses[row])) > batch_tokens:
            yield rows
            rows, head = [], len(prompts[row])
        rows.append(row)
    yield rows


def _token_numbers(
    model: PreTrainedModel,
    sketch: GradientSketch,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    temperature: float,
    padding: int,
) -> tuple[Tensor, Tensor]:
    """Backpropagate the log-probabilities; return entropies and log-probabilities `(2, B, T)`, and the mask."""
    head, tail = max(map(len, prompts)), max(map(len, responses))
    text = torch.full((len(prompts), head + tail), padding)
    given = torch.zeros_like(text)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):  # prompts end in the same column
        text[row, head - len(prompt) : head + len(response)] = torch.tensor([*prompt, *response])
        given[row, head - len(prompt) : head + len(response)] = 1
    text, given = text.to(model.device), given.to(model.device)
    sketch.expect(*text.shape)
    output = model(
        input_ids=text,
        attention_mask=given,
        position_ids=(given.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=tail + 1,
    )
    mask = given[:, head:].bool()
    log_softmax = (output.logits[:, :-1].float() / temperature).log_softmax(dim=-1)
    log_probs = log_softmax.gather(-1, text[:, head:].unsqueeze(-1)).squeeze(-1).masked_fill(~mask, 0.0)
    log_probs.sum().backward()
    with torch.no_grad():
        probs = log_softmax.exp()
        # A token that cannot be drawn has a log-probability of -inf and adds 0.
        entropies = -(probs * log_softmax.masked_fill(probs == 0, 0.0)).sum(dim=-1).masked_fill(~mask, 0.0)
    return torch.stack([entropies, log_probs.detach()]).cpu(), mask.cpu()

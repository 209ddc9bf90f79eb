"""Response metrics: one number per response, by which CANON regroups a prompt group.

A metric is a function of the rows that were sampled on this rank, B of them, called with keyword arguments only. It
can take what a reward function of TRL takes (`prompts`, `completions`, `completion_ids`, every column of the dataset)
and, by naming them in its signature, these `(B, T)` tensors:

    entropies    entropy in nats of the policy's distribution of each token, at the sampling temperature
    log_probs    log-probability of each sampled token in that same distribution
    mask         True on the tokens that the model wrote; tools, environments and padding are False, the tokens of a
                 truncated completion are True also where training masks them

The distribution is softmax(logits / temperature), whoever samples: what `top_k`, `top_p`, `min_p`, penalties or a
setting of the model's own make of it afterwards has no part in either. So with `top_k=1`, where the sampler is certain
of every token, they are not 0. A `rollout_func` that hands over `logprobs` says what they are.

Naming `entropies` or `log_probs` may cost a forward pass, so the trainer prepares only what is named. A metric returns
B finite numbers, as a list or a tensor. It gets those keyword arguments that its signature names, or all of them if it
takes `**kwargs`.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from canon_trl.imports import is_import_path, load_function
from canon_trl.method import name_of
from canon_trl.options import did_you_mean

ResponseMetric = Callable[..., Tensor | Sequence[float]]

TOKEN_INPUTS = ("entropies", "log_probs", "mask")


def mean_over_response(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each response that `mask` selects, `(B, T) -> (B,)` in float32; 0 where it selects none.

    NaN values (vLLM cannot score every token) are left out of the mean.
    """
    mask = mask.bool() & ~values.isnan()
    total = values.float().masked_fill(~mask, 0.0).sum(dim=-1)
    return total / mask.sum(dim=-1).clamp(min=1)


def entropy(entropies: Tensor, mask: Tensor) -> Tensor:
    """Mean token entropy in nats: how undecided the model was while writing the response."""
    return mean_over_response(entropies, mask)


def surprisal(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Mean of -log p of the sampled tokens in nats: how unlikely the response was to the policy that wrote it."""
    return mean_over_response(-log_probs, mask)


def length(mask: Tensor) -> Tensor:
    """Number of tokens that the model wrote."""
    return mask.sum(dim=-1).float()


def random_metric(shape: torch.Size | tuple[int, int], *, seed: int, step: int) -> Tensor:
    """A uniform draw for every response, `(P, G)`: the control that tells a metric's effect from that of regrouping.

    A function of the seed and the rollout's index alone, so every rank sees the same draw and a resumed run repeats
    it. The reference implementation splits by position instead, which is as random, since responses are exchangeable.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    return torch.rand(tuple(shape), generator=generator)


METRICS: dict[str, ResponseMetric] = {"entropy": entropy, "length": length, "surprisal": surprisal}

RANDOM = "random"


def metric_name(metric: str | ResponseMetric) -> str:
    """The name by which a rollout carries the metric."""
    return metric if isinstance(metric, str) else name_of(metric)


def get_metric(metric: str | ResponseMetric, *, field: str) -> ResponseMetric | None:
    """The metric of that name in [`METRICS`], at that import path, or itself; `None` for [`RANDOM`].

    The random one is no function of its rows: the trainer draws it for all ranks at once.

    Raises:
        ValueError: there is none; the message lists the known names.
    """
    if not isinstance(metric, str):
        return metric
    if metric == RANDOM or metric in METRICS:
        return METRICS.get(metric)
    if is_import_path(metric):
        return load_function(metric, field=field)
    known = sorted([*METRICS, RANDOM])
    raise ValueError(
        f"{field}={metric!r} is unknown{did_you_mean(metric, known)}; choose one of {known} or give an import path "
        "'package.module:function'"
    )


def get_metrics(
    wanted: Iterable[str | ResponseMetric], *, field: str = "requires_metrics"
) -> dict[str, ResponseMetric | None]:
    """Metrics by the names under which a rollout carries them.

    Raises:
        ValueError: there is none of that name, or two functions share one.
    """
    metrics: dict[str, ResponseMetric | None] = {}
    for metric in wanted:
        name, function = metric_name(metric), get_metric(metric, field=field)
        if metrics.setdefault(name, function) is not function:
            raise ValueError(f"{field}: two different metrics are named {name!r}; rename one of the functions")
    return metrics


def token_inputs(metric: ResponseMetric) -> set[str]:
    """Which of the `(B, T)` tensors `entropies`, `log_probs` and `mask` the metric's signature names."""
    return set(inspect.signature(metric).parameters) & set(TOKEN_INPUTS)


def measure(metric: ResponseMetric, name: str, rows: int, inputs: dict[str, object]) -> Tensor:
    """Call the metric with those `inputs` that it takes; `(B,)` in float32, on the device that it returns.

    Raises:
        ValueError: it did not return one number a row.
    """
    parameters = inspect.signature(metric).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        inputs = {key: value for key, value in inputs.items() if key in parameters}
    values = torch.as_tensor(metric(**inputs), dtype=torch.float32).detach()
    if values.shape != (rows,):
        raise ValueError(
            f"metric {name!r} returned values of shape {tuple(values.shape)} for {rows} completions; it must return "
            "one number a completion"
        )
    return values

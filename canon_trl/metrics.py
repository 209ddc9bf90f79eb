"""Response metrics: one number per response, by which CANON splits a prompt group.

A metric is a function of the B responses that this rank sampled. The trainer calls it with keyword arguments: those of
a TRL reward function (`prompts`, `completions`, `completion_ids`, every column of the dataset) and, if its signature
names them, these `(B, T)` tensors:

    entropies    entropy in nats of the policy's distribution at each token, at the sampling temperature
    log_probs    log-probability of each sampled token in that distribution
    mask         True on tokens that the model wrote, also in truncated completions that training masks; False on
                 padding and on tokens of tools and environments

The distribution is softmax(logits / temperature) for every sampler: `top_k`, `top_p`, `min_p`, penalties and the
model's own generation settings do not change it. So with `top_k=1` neither tensor is 0, although sampling is
deterministic. If a `rollout_func` returns `logprobs`, those are used.

`entropies` and `log_probs` may cost a forward pass, so the trainer computes them only for metrics that name them. A
metric receives the arguments that its signature names, or all of them if it takes `**kwargs`. It returns B finite
numbers, as a list or a tensor.
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
    """Average over the tokens of each response that `mask` selects, `(B, T) -> (B,)` in float32; 0 if it selects none.

    The mean skips NaN, which marks tokens that vLLM could not score.
    """
    mask = mask.bool() & ~values.isnan()
    total = values.float().masked_fill(~mask, 0.0).sum(dim=-1)
    return total / mask.sum(dim=-1).clamp(min=1)


def entropy(entropies: Tensor, mask: Tensor) -> Tensor:
    """Mean token entropy in nats: how uncertain the model was while it wrote the response."""
    return mean_over_response(entropies, mask)


def surprisal(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Mean of -log p of the sampled tokens in nats: how unlikely the response was to the policy that wrote it."""
    return mean_over_response(-log_probs, mask)


def length(mask: Tensor) -> Tensor:
    """Number of tokens that the model wrote."""
    return mask.sum(dim=-1).float()


def entropy_by_correctness(entropies: Tensor, lengths: Tensor, accuracy: Tensor) -> dict[str, Tensor]:
    """Mean entropy per token of the right and of the wrong responses of a rollout.

        H = sum_i(L_i * H_i) / sum_i(L_i)

    While accuracy rises fast, entropy falls mostly in wrong responses (https://huggingface.co/papers/2508.07534).

    Args:
        entropies: H_i, the mean token entropy of each response, in nats; any shape.
        lengths: L_i, in tokens.
        accuracy: at least 1, up to a rounding error of 1e-6, if the response is right; NaN if it was not scored, so
            that it is neither right nor wrong.

    Returns:
        `right` and `wrong`, 0-d in nats; NaN without such a response.
    """
    least = 1 - 1e-6
    tokens = {"right": lengths * (accuracy >= least), "wrong": lengths * (accuracy < least)}
    return {name: (entropies * count).sum() / count.sum() for name, count in tokens.items()}


def random_metric(shape: torch.Size | tuple[int, int], *, seed: int, step: int) -> Tensor:
    """Draw a uniform number per response, `(P, G)`, to separate a metric's effect from the effect of splitting.

    It depends only on the seed and the rollout's index, so every rank has the same draw and a resumed run repeats it.
    The reference implementation splits by position, which is as random, since responses are exchangeable.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    return torch.rand(tuple(shape), generator=generator)


METRICS: dict[str, ResponseMetric] = {
    "entropy": entropy,
    "length": length,
    "surprisal": surprisal,
}

RANDOM = "random"


def metric_name(metric: str | ResponseMetric) -> str:
    """Return the metric's name in `Rollout.metrics`."""
    return metric if isinstance(metric, str) else name_of(metric)


def get_metric(metric: str | ResponseMetric, *, field: str) -> ResponseMetric | None:
    """Find a metric by its name in [`METRICS`] or its import path; a function is returned as it is.

    `"random"` gives `None`: it is not a function of responses; the trainer draws it for all ranks at once.

    Raises:
        ValueError: the name is unknown; the message lists the known names.
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
    """Find several metrics, by their names in `Rollout.metrics`.

    Raises:
        ValueError: a name is unknown, or two functions have the same name.
    """
    metrics: dict[str, ResponseMetric | None] = {}
    for metric in wanted:
        name, function = metric_name(metric), get_metric(metric, field=field)
        if metrics.setdefault(name, function) is not function:
            raise ValueError(f"{field}: two different metrics are named {name!r}; rename one of the functions")
    return metrics


def token_inputs(metric: ResponseMetric) -> set[str]:
    """Return the tensors among `entropies`, `log_probs` and `mask` that the metric's signature names."""
    return set(inspect.signature(metric).parameters) & set(TOKEN_INPUTS)


def measure(metric: ResponseMetric, name: str, rows: int, inputs: dict[str, object]) -> Tensor:
    """Call the metric with the `inputs` that it takes; `(B,)` in float32, on the device of the metric's result.

    Raises:
        ValueError: the metric did not return one number per response.
    """
    parameters = inspect.signature(metric).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        inputs = {key: value for key, value in inputs.items() if key in parameters}
    values = torch.as_tensor(metric(**inputs), dtype=torch.float32).detach()
    if values.shape != (rows,):
        raise ValueError(
            f"metric {name!r} returned values of shape {tuple(values.shape)} for {rows} completions; it must return "
            "one number per completion"
        )
    return values

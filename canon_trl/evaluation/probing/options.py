"""The options of a probe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from canon_trl.evaluation.probing.estimators import Spec
from canon_trl.evaluation.probing.sketch import Layers
from canon_trl.sampling.samplers import check_distribution


@dataclass(frozen=True)
class ProbeOptions:
    """How a probe samples, and what it compares. The defaults suit 128 prompts with 16 responses each.

    Attributes:
        num_prompts: number of prompts, drawn from the dataset at random; all of them if it has fewer.
        num_samples: responses per prompt, G. The trap needs a G at which half of the responses often contain a right
            one.
        max_completion_length: maximum number of tokens per response, as in training.
        temperature, top_p, top_k, min_p, repetition_penalty: sampling options, as in training.
        stop_strings: texts that end a response.
        chat_template_kwargs: options of the chat template.
        reward_weights: one per reward function; default 1.
        reward_time_limit: maximum number of seconds for a call of a reward function; default no limit.
        threshold: minimum weighted reward of a right response.
        metrics: your metrics, in addition to the built-in ones: import paths or functions.
        estimators: yours, in addition to those of the package: names with options, import paths or functions.
        prompts_per_step: prompts per optimiser step of the training that you plan, for the noise of a step.
        loss_type: loss of that training. `"grpo"` gives every response the same weight; the others count every token.
        layers: the layers whose gradients are sketched, see
            `canon_trl.evaluation.probing.sketch.find_layers`. Default: all linear layers, or those of an adapter.
        sketch_size: number of random directions per side of a layer, k. Costs k^2 numbers per layer and response.
        batch_tokens: maximum number of tokens in a forward and backward pass.
        chunk_prompts: number of prompts between two savings of the progress.
        target_entropy: entropy in nats per token for the suggested temperature, see
            [`~canon_trl.evaluation.suggest_temperature`]; `None` to suggest none.
        confidence: probability of the intervals, over prompts; those of the metrics hold together with it.
        seed: seed of prompts, samples, sketches and intervals.
    """

    num_prompts: int = 128
    num_samples: int = 16
    max_completion_length: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop_strings: Sequence[str] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    reward_weights: Sequence[float] | None = None
    reward_time_limit: float | None = None
    threshold: float = 1.0
    metrics: Sequence[str | Callable[..., Any]] = ()
    estimators: Sequence[Spec] = ()
    prompts_per_step: int = 8
    loss_type: Literal["dr_grpo", "grpo", "bnpo", "dapo"] = "dr_grpo"
    layers: Layers = None
    sketch_size: int = 24
    batch_tokens: int = 8192
    chunk_prompts: int = 16
    target_entropy: float | None = 0.3
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"num_prompts": 2, "num_samples": 2}
        least |= dict.fromkeys(
            ("max_completion_length", "prompts_per_step", "sketch_size", "batch_tokens", "chunk_prompts"), 1
        )
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least {smallest}")
        check_distribution(self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty)
        if self.loss_type not in ("dr_grpo", "grpo", "bnpo", "dapo"):
            raise ValueError(f"loss_type={self.loss_type!r} must be 'dr_grpo', 'grpo', 'bnpo' or 'dapo'")
        if self.target_entropy is not None and not self.target_entropy > 0:
            raise ValueError(f"target_entropy={self.target_entropy!r} must be positive or None")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence!r} must lie in (0, 1)")

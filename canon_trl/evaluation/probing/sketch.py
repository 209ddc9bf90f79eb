"""Sketches of per-response gradients: random projections that keep inner products."""

import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Layers = str | int | Sequence[str] | None


class GradientSketch:
    """Collects a sketch of the gradient of every row of a batch, layer by layer, during a backward pass.

    The gradient of a linear layer's weight for one response is sum_t(d_t a_t^T), with a_t the inputs at token t and
    d_t the gradients of the outputs. Its sketch is sum_t((B^T d_t) (A^T a_t)^T) for fixed random A and B with k
    columns. So a gradient of the size of the model is never formed, and inner products are kept in expectation:
    E[<B^T X A, B^T Y A>] = <X, Y>. A side with at most k units is kept as it is. A bias counts as the weight of an
    input that is always 1.

    Hooks act only within the `with` block. Embeddings and norms are not sketched.

    ```python
    with GradientSketch(model, layers, size=24) as sketch:
        log_probs(model, batch).sum().backward()
        rows = sketch.take()
    ```

    Args:
        model: the model; no parameter gets a gradient within the block.
        layers: the layers by name, from [`find_layers`].
        size: k.
        seed: seed of the projections.
    """

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module], *, size: int, seed: int = 0) -> None:
        self._model = model
        self._layers = layers
        generator = torch.Generator().manual_seed(seed)
        self._sides: dict[str, tuple[Tensor, Tensor]] = {}
        for name, layer in layers.items():
            inputs, outputs = units(layer)
            self._sides[name] = projection(inputs, size, generator), projection(outputs, size, generator)
        self._parts: dict[str, Tensor] = {}
        self._rows = self._tokens = 0
        self._hooks: list[Any] = []
        self._trained: list[nn.Parameter] = []

    @property
    def width(self) -> int:
        """Number of values per row."""
        return sum(left.shape[1] * right.shape[1] for left, right in self._sides.values())

    def __enter__(self) -> "GradientSketch":
        # Without gradients of weights, the backward pass needs no memory for them.
        self._trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        for parameter in self._trained:
            parameter.requires_grad_(False)
        self._hooks = [layer.register_forward_hook(self._watch(name)) for name, layer in self._layers.items()]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for parameter in self._trained:
            parameter.requires_grad_(True)
        self._parts.clear()

    def expect(self, rows: int, tokens: int) -> None:
        """Announce the numbers of rows and of tokens per row of the next forward pass."""
        self._rows, self._tokens = rows, tokens

    def take(self) -> Tensor:
        """Return the sketches since the last call, `(N, width)` in float32 on the CPU.

        Raises:
            ValueError: the backward pass did not reach some of the layers.
        """
        if missing := [name for name in self._layers if name not in self._parts]:
            raise ValueError(
                f"the gradient did not reach {len(missing)} of {len(self._layers)} layers, such as {missing[0]!r}; "
                "leave them out with layers="
            )
        sketches = torch.cat([self._parts[name].flatten(1).cpu() for name in self._layers], dim=1)
        self._parts.clear()
        return sketches

    def _watch(self, name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            if not output.requires_grad:  # the first layers, since neither parameters nor embeddings need a gradient
                output.requires_grad_(True)
            given = self._by_row(name, inputs[0].detach())
            left, right = (side.to(given.device) for side in self._sides[name])
            self._sides[name] = left, right
            projected = given @ left[: given.shape[-1]]
            if len(left) > given.shape[-1]:
                projected = projected + left[-1]

            def add(gradient: Tensor) -> None:
                part = torch.einsum("nti,ntj->nij", self._by_row(name, gradient) @ right, projected)
                self._parts[name] = self._parts[name] + part if name in self._parts else part

            output.register_hook(add)

        return hook

    def _by_row(self, name: str, values: Tensor) -> Tensor:
        """Return the values of a layer as `(N, T, units)` in float32."""
        if values.dim() == 2 and len(values) == self._rows * self._tokens:
            values = values.view(self._rows, -1, values.shape[-1])  # a layer that flattens the tokens of all rows
        if values.dim() != 3 or len(values) != self._rows:
            raise ValueError(
                f"layer {name!r} cannot be sketched: it receives values of shape {tuple(values.shape)} for "
                f"{self._rows} responses, as the experts of a mixture do; leave it out with layers="
            )
        return values.float()


def projection(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Return a random `(count, min(count, size))` matrix A with E[A A^T] = I; the identity if nothing is projected.

    Its columns are orthogonal, which makes sketched inner products less noisy than independent entries do.
    """
    if count <= size:
        return torch.eye(count)
    columns, _ = torch.linalg.qr(torch.randn(count, size, generator=generator))
    scaled: Tensor = columns * (count / size) ** 0.5
    return scaled


def units(layer: nn.Module) -> tuple[int, int]:
    """Return the number of inputs of a layer, with one for its bias, and of outputs."""
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0] + 1, layer.weight.shape[1]
    assert isinstance(layer, nn.Linear)
    return layer.in_features + (layer.bias is not None), layer.out_features


def find_layers(model: nn.Module, layers: Layers = None) -> dict[str, nn.Module]:
    """Find the linear layers to sketch, by name.

    Args:
        model: the model.
        layers: `None` means the layers of the adapter if the model has one, and all linear layers otherwise; `"all"`
            means all linear layers; a number n means those of the last n blocks; texts mean those with one of the
            texts in their names, such as `["self_attn"]`.

    Raises:
        ValueError: there is no such layer, or a number is below 1.
    """
    linear: dict[str, nn.Module] = {
        name: each for name, each in model.named_modules() if isinstance(each, nn.Linear | Conv1D)
    }
    if not linear:
        kinds = sorted({type(module).__name__ for module in model.modules() if list(module.parameters(recurse=False))})
        raise ValueError(
            f"{type(model).__name__} has no linear layer, so its gradients cannot be sketched; its layers are {kinds}"
        )
    if layers is None:
        layers = "lora_" if isinstance(model, PeftModel) else "all"
    if layers == "all":
        return linear
    if isinstance(layers, int):
        found = _of_last_blocks(linear, layers)
    else:
        texts = [layers] if isinstance(layers, str) else list(layers)
        found = {name: layer for name, layer in linear.items() if any(text in name for text in texts)}
    if not found:
        raise ValueError(f"layers={layers!r} matches none of the linear layers, such as {list(linear)[:3]}")
    return found


def _of_last_blocks(linear: dict[str, nn.Module], count: int) -> dict[str, nn.Module]:
    if count < 1:
        raise ValueError(f"layers={count!r} must be at least 1")
    blocks = {name: int(found[1]) for name in linear if (found := re.search(r"\.(\d+)\.", name))}
    last = sorted(set(blocks.values()))[-count:]
    return {name: layer for name, layer in linear.items() if blocks.get(name) in last}

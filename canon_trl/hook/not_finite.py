"""Stop a run on all ranks as soon as a number is not finite."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from canon_trl.guards.finite import all_finite, local_part, plain_number, raise_unless


class NotFinite(GRPOTrainer):
    """Checks weights, loss and gradients."""

    def _check_weights(self) -> None:
        """Check the trained weights before a rollout is sampled; the others do not change."""
        trained = [local_part(weight) for weight in self.model.parameters() if weight.requires_grad]
        self._raise_unless(all_finite(trained, self.accelerator.device), "the rollout is not sampled", {})

    def _check_loss(self, loss: Tensor, inputs: dict[str, Any], log_probs: Tensor) -> None:
        """Check the loss before its backward pass."""
        tensors = {
            "the policy's log-probabilities": log_probs,
            "the log-probabilities of the rollout": inputs.get("old_per_token_logps"),
            "the reference model's log-probabilities": inputs.get("ref_per_token_logps"),
            "the advantages": inputs["advantages"],
        }
        self._raise_unless(loss.detach().isfinite(), "the loss is not finite", tensors)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Check the norm, between clipping and the optimiser's step."""
        norm = plain_number(super()._get_grad_norm(model, grad_norm))
        if norm is not None and self.accelerator.scaler is None:  # a scaler skips such steps
            gradients = {f"the gradient of {name}": p.grad for name, p in self.model.named_parameters()}
            finite = torch.as_tensor(norm, device=self.accelerator.device).isfinite()
            self._raise_unless(finite, f"the norm of the gradients is {norm}", gradients)
        return norm

    def _raise_unless(self, finite: Tensor, what: str, tensors: Mapping[str, Tensor | None]) -> None:
        what = f"optimiser step {self.state.global_step}: {what}"
        raise_unless(finite, what, self.model.named_parameters(), tensors, self.accelerator)

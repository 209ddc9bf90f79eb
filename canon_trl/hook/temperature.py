"""Change the temperature between rollouts in every place where TRL stores it."""

from types import CellType
from typing import Any

import trl
from peft import PeftModel
from torch import nn

from canon_trl.trl_release import FUSED_HEAD


class Temperature:
    """The temperature of sampling and of the scores.

    The sampler reads it from vLLM's settings, or from a `GenerationConfig` and the arguments that made it. The scores
    read it from the trainer; since release 1.15, from a variable that the fused heads of the policy and the reference
    closed over. Writing that variable gives, bit for bit, the scores of a trainer made with this temperature. The
    variables are looked up right after the trainer is made, before the model is wrapped.

    Args:
        trainer: a [`~trl.GRPOTrainer`].

    Raises:
        RuntimeError: a fused head stores the temperature elsewhere.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        models = {"policy": trainer.model, "reference model": trainer.ref_model}
        self._cells = [
            find_cell(trainer.accelerator.unwrap_model(model), name, trainer.temperature)
            for name, model in models.items()
            if model is not None and FUSED_HEAD
        ]

    @property
    def value(self) -> float:
        return self._trainer.temperature

    @value.setter
    def value(self, temperature: float) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature!r} must be above 0")
        trainer = self._trainer
        trainer.temperature = temperature
        if trainer.use_vllm:
            trainer.vllm_generation.temperature = temperature
        else:
            trainer.generation_config.temperature = temperature
            trainer.generation_kwargs["temperature"] = temperature
        for cell in self._cells:
            cell.cell_contents = temperature


def find_cell(model: nn.Module, name: str, temperature: float) -> CellType:
    """Find the variable from which the forward method of a model with a fused head reads its temperature.

    Mixed precision wraps this method, and stores the original as `_original_forward`.

    Args:
        model: without the wrappers of distributed training.
        name: name of the model, for the error.
        temperature: what the variable must hold.

    Raises:
        RuntimeError: there is no such variable, or it has another value.
    """
    module = model.get_base_model() if isinstance(model, PeftModel) else model
    for attribute in ("forward", "_original_forward"):
        method: Any = getattr(module, attribute, None)
        function: Any = getattr(method, "__func__", method)
        names = function.__code__.co_freevars if hasattr(function, "__code__") else ()
        if "temperature" in names:
            cell = function.__closure__[names.index("temperature")]
            if cell.cell_contents == temperature:
                return cell
    raise RuntimeError(
        f"the {name}, a {type(module).__name__}, stores the temperature {temperature} of its scores where a "
        f"controller cannot reach it (TRL {trl.__version__}); train without a temperature controller, or with "
        "a release of TRL that canon_trl supports"
    )

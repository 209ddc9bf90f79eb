"""Train a model with CANON or another method, from the embedded task on a laptop to a cluster.

    canon-trl train                                                                # embedded task, offline, minutes
    canon-trl train --canon_metric length --canon_alpha 0.8
    accelerate launch --config_file accelerate_configs/zero3.yaml -m canon_trl train \
        --config qwen2.5_math_7b_canon_inter                                       # the paper's setting

Options come from a recipe, from flags, or from both; a flag overrides the recipe. The output folder gets the model
with its card, `metrics.csv`, `metrics.json` and `curves.png`. `trainer: astar_po` trains with A*-PO instead, on
prompts whose values come from the command `values`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import load_dataset
from trl import get_peft_config, get_quantization_config

from canon_trl.cli import plan
from canon_trl.cli.arguments import RecipeArguments, option_in, parse
from canon_trl.cli.data import load_data
from canon_trl.cli.interrupts import explains_interrupt
from canon_trl.cli.rewards import add_noise, reward_functions
from canon_trl.cli.running import model_options, name_model, train_and_save
from canon_trl.config import AStarPOConfig, CANONConfig
from canon_trl.options import did_you_mean
from canon_trl.trainers import AStarPOTrainer, CANONTrainer


@dataclass
class TrainArguments:
    """Which trainer to use, and whether to train."""

    trainer: str = field(default="canon", metadata={"help": "`canon`, for every estimator and loss, or `astar_po`."})
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Whether to check options and data, print the plan with an estimate of the memory, and stop "
            "before the model is loaded."
        },
    )


@dataclass
class AStarPOArguments(TrainArguments):
    """Where to find the values of an embedded task; a dataset contains its own."""

    values: str | None = field(
        default=None, metadata={"help": "Folder that the command `values` wrote for the embedded task."}
    )


@dataclass(frozen=True)
class Kind:
    """A trainer with its options and the recipe that it uses if none is named."""

    trainer: type[CANONTrainer] | type[AStarPOTrainer]
    config: type[CANONConfig] | type[AStarPOConfig]
    arguments: type[TrainArguments]
    recipe: str


TRAINERS = {
    "canon": Kind(CANONTrainer, CANONConfig, TrainArguments, "arithmetic"),
    "astar_po": Kind(AStarPOTrainer, AStarPOConfig, AStarPOArguments, "arithmetic_astar_po"),
}


def main(argv: list[str] | None = None) -> CANONTrainer | AStarPOTrainer | None:
    """Train as the arguments say, and return the trainer; `None` after a dry run."""
    kind = named_trainer(argv)
    recipe, options, training, model = parse(argv, kind.arguments, kind.config, command="train", embedded=kind.recipe)
    if isinstance(options, AStarPOArguments):
        check_values(recipe, options.values)
    training.eval_on_start = training.eval_strategy != "no"
    training.model_init_kwargs = model_options(model, training)
    functions, training.reward_weights = add_noise(
        recipe,
        reward_functions(recipe, training.max_completion_length),
        training.reward_weights,
        seed=training.seed,
        accuracy=getattr(training, "accuracy_reward", None),
    )
    values = getattr(options, "values", None)
    given = (
        name_model(recipe, model),
        functions,
        training,
        *(load_values(values, training) if values else load_data(recipe, wants_eval=training.eval_on_start)),
    )
    loading = {"peft_config": get_peft_config(model), "quantization_config": get_quantization_config(model)}
    if options.dry_run:
        found = plan.check(kind.trainer, *given, **loading)
        if training.process_index == 0:
            print(plan.describe(found))
        return None
    trainer = kind.trainer(*given, **loading)
    with explains_interrupt(trainer, argv):
        train_and_save(trainer, recipe)
    return trainer


def named_trainer(argv: list[str] | None) -> Kind:
    """Return the trainer that the flags or the recipe name, which decides what the other options are."""
    name = option_in(argv, "trainer") or "canon"
    if name not in TRAINERS:
        raise ValueError(f"trainer={name!r} must be one of {list(TRAINERS)}{did_you_mean(str(name), TRAINERS)}")
    return TRAINERS[name]


def check_values(recipe: RecipeArguments, values: str | None) -> None:
    if (recipe.task is None) != (values is None):
        raise ValueError(
            f"task={recipe.task!r} and values={values!r}: an embedded task needs the folder of its values, and a "
            "dataset has them in its columns"
        )
    if values is not None and not Path(values).is_dir():
        raise ValueError(f"values={values!r}: there is no such folder; `canon-trl values` writes it")


def load_values(folder: str, training: AStarPOConfig) -> tuple[Any, Any]:
    """Return the training prompts and, if the run evaluates, the held-out ones, with their values."""
    loaded = load_dataset(folder)
    if training.eval_on_start and "test" not in loaded:
        raise ValueError(
            f"values={folder!r} has no split 'test'; estimate its values too, or set eval_strategy to 'no'"
        )
    return loaded["train"], loaded["test"] if training.eval_on_start else None


def run(argv: list[str]) -> None:
    """Train, then end the process."""
    trainer = main(argv)
    if trainer is not None:
        trainer.end()

"""Train a model with A*-PO on prompts whose values come from `estimate_values.py`.

    accelerate launch examples/estimate_values.py && accelerate launch examples/train_astar_po.py      # embedded task
    accelerate launch --config_file accelerate_configs/zero3.yaml examples/train_astar_po.py \
        --config qwen2.5_1.5b_astar_po
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from datasets import load_dataset
from recipe import add_noise, load_data, model_options, name_model, parse, reward_functions, train
from trl import get_peft_config, get_quantization_config

from canon_trl import AStarPOConfig, AStarPOTrainer


@dataclass
class ValueData:
    """Where to find the values of an embedded task; a dataset contains its own."""

    values: str | None = field(default=None, metadata={"help": "Folder that estimate_values.py wrote for the task."})


def main(argv: list[str]) -> AStarPOTrainer:
    recipe, data, training, model = parse(argv, ValueData, AStarPOConfig, embedded="arithmetic_astar_po")
    if (recipe.task is None) != (data.values is None):
        raise ValueError(
            f"task={recipe.task!r} and values={data.values!r}: an embedded task needs the folder of its values, and a "
            "dataset has them in its columns"
        )
    training.eval_on_start = training.eval_strategy != "no"
    training.model_init_kwargs = model_options(model, training)
    if data.values is None:
        splits = load_data(recipe, wants_eval=training.eval_on_start)
    else:
        if not Path(data.values).is_dir():
            raise ValueError(f"values={data.values!r}: there is no such folder; estimate_values.py writes it")
        loaded = load_dataset(data.values)
        if training.eval_on_start and "test" not in loaded:
            raise ValueError(
                f"values={data.values!r} has no split 'test'; estimate its values too, or set eval_strategy to 'no'"
            )
        splits = loaded["train"], loaded["test"] if training.eval_on_start else None
    functions = reward_functions(recipe, training.max_completion_length)
    functions, training.reward_weights = add_noise(recipe, functions, training.reward_weights, seed=training.seed)
    trainer = AStarPOTrainer(
        name_model(recipe, model),
        functions,
        training,
        *splits,
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
    )
    train(trainer, recipe)
    return trainer


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(sys.argv[1:]).end()

"""Train a model with CANON or another method, from the embedded task on a laptop to a cluster.

    accelerate launch examples/train_canon.py                                      # embedded task, offline, minutes
    accelerate launch examples/train_canon.py --canon_metric length --canon_alpha 0.8
    accelerate launch --config_file accelerate_configs/zero3.yaml examples/train_canon.py \
        --config qwen2.5_math_7b_canon_inter                 # the paper's setting

Options come from a YAML file, from flags, or from both; a flag overrides the file. The output folder gets the model
with its card, `metrics.csv`, `metrics.json` and `curves.png`.
"""

import logging
import sys

from recipe import add_noise, load_data, model_options, name_model, parse, reward_functions, train
from trl import get_peft_config, get_quantization_config

from canon_trl import CANONConfig, CANONTrainer


def main(argv: list[str]) -> CANONTrainer:
    recipe, training, model = parse(argv, CANONConfig, embedded="arithmetic")
    training.eval_on_start = training.eval_strategy != "no"
    training.model_init_kwargs = model_options(model, training)
    functions = reward_functions(recipe, training.max_completion_length)
    functions, training.reward_weights = add_noise(
        recipe, functions, training.reward_weights, seed=training.seed, accuracy=training.accuracy_reward
    )
    trainer = CANONTrainer(
        name_model(recipe, model),
        functions,
        training,
        *load_data(recipe, wants_eval=training.eval_on_start),
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
    )
    train(trainer, recipe)
    return trainer


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(sys.argv[1:]).end()

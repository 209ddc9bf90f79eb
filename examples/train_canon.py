"""Train a model with CANON or another method: the command `train` of `canon-trl`.

    accelerate launch examples/train_canon.py                                      # embedded task, offline, minutes
    accelerate launch examples/train_canon.py --canon_metric length --canon_alpha 0.8
    accelerate launch --config_file accelerate_configs/zero3.yaml examples/train_canon.py \
        --config qwen2.5_math_7b_canon_inter                                       # the paper's setting
"""

import sys

from canon_trl.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])

"""Train a model with A*-PO on prompts whose values come from `estimate_values.py`.

    accelerate launch examples/estimate_values.py && accelerate launch examples/train_astar_po.py      # embedded task
    accelerate launch --config_file accelerate_configs/zero3.yaml examples/train_astar_po.py \
        --config qwen2.5_1.5b_astar_po
"""

import sys

from canon_trl.cli import main

if __name__ == "__main__":
    main(["train", "--trainer", "astar_po", *sys.argv[1:]])

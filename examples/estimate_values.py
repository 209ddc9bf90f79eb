"""Sample a model's rewards for every prompt: the command `values` of `canon-trl`.

accelerate launch examples/estimate_values.py                                  # embedded task, offline, a minute
accelerate launch examples/estimate_values.py --config qwen2.5_1.5b_values
"""

import sys

from canon_trl.cli import main

if __name__ == "__main__":
    main(["values", *sys.argv[1:]])

"""Evaluate a model on one benchmark or several: the command `evaluate` of `canon-trl`.

accelerate launch examples/evaluate_model.py                                             # embedded task, offline
accelerate launch examples/evaluate_model.py --config evaluate_math --model_name_or_path MODEL
"""

import sys

from canon_trl.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])

"""Generate word problems like those of GSM8K: `python benchmarks/generate_gsm.py FOLDER [--train 4000 --test 256]`.

The problems come from reasoning-gym's `gsm_symbolic`. The folder becomes a dataset with the splits `train` and `test`
and the columns `question` and `answer`; the splits share no question.
"""

import argparse
from pathlib import Path

import reasoning_gym
from datasets import Dataset


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    wanted = options.train + options.test
    answers: dict[str, str] = {}
    for problem in reasoning_gym.create_dataset("gsm_symbolic", seed=options.seed, size=2 * wanted):
        answers.setdefault(problem["question"], problem["answer"])
    if len(answers) < wanted:
        raise ValueError(f"train={options.train} and test={options.test}: only {len(answers)} problems are distinct")
    data = Dataset.from_dict({"question": list(answers)[:wanted], "answer": list(answers.values())[:wanted]})
    options.folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", range(options.test, wanted)), ("test", range(options.test))):
        data.select(rows).to_parquet(options.folder / f"{split}.parquet")


if __name__ == "__main__":
    main()

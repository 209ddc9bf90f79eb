"""Evaluation during training on two ranks; `test_evaluation_across_ranks.py` starts it."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from toy import TASK, leave, make_trainer

from canon_trl.evaluation import EvaluationCallback


def run(folder: Path, ranks: int) -> list[dict[str, Any]]:
    """Return the logged evaluations of a model that does not change, so that they cannot depend on the ranks."""
    trainer = make_trainer(folder, max_steps=2, learning_rate=0.0, per_device_train_batch_size=8 // ranks)
    trainer.add_callback(
        EvaluationCallback(
            trainer,
            TASK.dataset("test", 8),
            TASK.reward,
            every_steps=1,
            num_samples=4,
            pass_ks=[2, 4],
            majority_ks=[3],
            answer_of=TASK.answer_of,
            chunk_prompts=3,  # three chunks: two on one rank and one on the other
        )
    )
    trainer.train()
    assert trainer.accelerator.num_processes == ranks
    return [
        {name: value for name, value in entry.items() if name == "step" or "evaluation/" in name}
        for entry in trainer.state.log_history
        if "evaluation/avg@4" in entry
    ]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    entries = run(folder, ranks=2)
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(entries))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()

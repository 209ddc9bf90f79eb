"""Train SmolLM2-135M on sums, and keep the curve and the accuracies before and after; docs/pretrained.md shows them.

    python benchmarks/pretrained.py base     # the greedy accuracy of the base model on sums
    python benchmarks/pretrained.py large    # the task large_sums, an hour on two cores
    PYTHONPATH=tests:tests/vllm_engine python benchmarks/pretrained.py vllm    # sums, in the environment of test-vllm
    python benchmarks/pretrained.py page     # writes the page from benchmarks/results/

Other flags go to the command `train`. benchmarks/comparisons/smollm2_sums.yaml compares three methods on `sums`.
"""

import argparse
import json
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "pretrained"
RECIPES = {
    "large": ["--config", "smollm2_large_sums"],
    "vllm": [
        *("--config", "smollm2_sums", "--max_steps", "45", "--eval_steps", "15"),
        *("--use_vllm", "true", "--vllm_mode", "colocate", "--vllm_max_model_length", "64"),
    ],
}
ACCURACY = "eval_rewards/accuracy/mean"


def greedy(task: str, model: str | Path, folder: Path) -> dict[str, Any]:
    """Return the greedy accuracy on the held-out prompts, with its interval."""
    from canon_trl.cli.evaluate import main as evaluate

    evaluate(
        [
            *("--task", task, "--model_name_or_path", str(model), "--output_dir", str(folder), "--dtype", "float32"),
            *("--num_samples", "1", "--top_k", "1", "--max_completion_length", "4"),
        ]
    )
    (summary,) = json.loads((folder / "summary.json").read_text()).values()
    return {"mean": summary["avg"], **summary["avg_interval"], "prompts": summary["num_prompts"]}


def train(name: str, model: str, flags: list[str], folder: Path) -> dict[str, Any]:
    """Train with a recipe, and return its settings, its curve and the greedy accuracy before and after."""
    from canon_trl.cli.train import main

    begin = time.perf_counter()
    trainer = main([*RECIPES[name], "--model_name_or_path", model, "--output_dir", f"{folder}/model", *flags])
    seconds = time.perf_counter() - begin
    task = "large_sums" if name == "large" else "sums"
    history = trainer.state.log_history
    evaluations = [entry for entry in history if ACCURACY in entry]
    steps = [entry for entry in history if "step_time" in entry]
    return {
        "flags": [*RECIPES[name], *flags],
        "seed": trainer.args.seed,
        "seconds": round(seconds, 1),
        "curve": [
            {
                "step": entry["step"],
                "accuracy": round(entry[ACCURACY], 4),
                "seconds": round(sum(each["step_time"] for each in steps if each["step"] <= entry["step"]), 1),
            }
            for entry in evaluations
        ],
        "greedy": {
            "before": greedy(task, model, folder / "before"),
            "after": greedy(task, f"{folder}/model", folder / "after"),
        },
    }


def on_vllm() -> Any:
    """Return what makes vLLM's colocated engine run on a CPU."""
    from cpu_engine import vllm_on_cpu

    return vllm_on_cpu()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["base", *RECIPES, "page"])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="name or folder of the model")
    options, flags = parser.parse_known_args()
    if options.what == "page":
        from pretrained_page import write_page

        write_page(RESULTS)
    else:
        with TemporaryDirectory() as folder, on_vllm() if options.what == "vllm" else nullcontext():
            if options.what == "base":
                found = {"greedy": {"before": greedy("sums", options.model, Path(folder))}}
            else:
                found = train(options.what, options.model, flags, Path(folder))
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{options.what}.json").write_text(json.dumps(found, indent=1) + "\n")

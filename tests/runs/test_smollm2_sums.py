"""A pretrained language model learns to add: the first steps of the recipe `smollm2_sums`."""

import pytest
from smollm2 import save_smollm2

from canon_trl.cli.train import main


@pytest.mark.timeout(900)
def test_accuracy_on_held_out_sums_rises(tmp_path):
    model = save_smollm2(tmp_path / "SmolLM2-135M-Instruct")
    flags = {"config": "smollm2_sums", "model_name_or_path": model, "output_dir": tmp_path / "run", "use_cpu": True}
    flags |= {"max_steps": 14, "eval_steps": 14}
    trainer = main([f"--{name}={value}" for name, value in flags.items()])
    before, after = (
        entry["eval_rewards/accuracy/mean"] for entry in trainer.state.log_history if "eval_reward" in entry
    )
    assert 0.15 < before < 0.4
    assert after - before > 0.1

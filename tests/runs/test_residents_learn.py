"""The first method of each stage learns the embedded task."""

import pytest
from residents import FIRST
from toy import logged, make_trainer

SIZE = {"per_device_train_batch_size": 64, "num_generations": 8, "max_steps": 25, "seed": 1}


@pytest.mark.parametrize("field", FIRST)
def test_accuracy_rises(tmp_path, field):
    # By default E3 keeps the initial entropy, which lets the policy learn; a higher target does not.
    chosen = "e3_temperature" if field == "controller" else FIRST[field]
    trainer = make_trainer(tmp_path, **SIZE, **{field: chosen})
    trainer.train()
    accuracy = [entry["rewards/accuracy/mean"] for entry in logged(trainer)]
    first, last = sum(accuracy[:5]) / 5, sum(accuracy[-5:]) / 5
    assert 0.2 < first < 0.5  # lower at the controller's higher temperature
    assert last - first > 0.15

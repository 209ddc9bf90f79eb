"""Every pair of methods on one rank: trained for two steps, or rejected with a reason; see `tests/combinations.py`.

`tests/runs/test_combinations_across_ranks.py` trains the same rows on two ranks.
"""

import math

import pytest
import torch
from combinations import AT_FIRST_ROLLOUT, PAIRS, REJECTED, ROWS, options_of, pairs_of, title
from toy import config, logged, make_trainer, parameters


def test_every_pair_is_trained_or_rejected():
    trained = {pair for row in ROWS for pair in pairs_of(row)}
    assert trained | REJECTED.keys() == set(PAIRS)
    assert not trained & REJECTED.keys()


@pytest.mark.parametrize("pair", [pair for pair in REJECTED if pair not in AT_FIRST_ROLLOUT], ids=title)
def test_the_config_rejects_a_pair_and_names_both(pair):
    with pytest.raises(ValueError, match=REJECTED[pair]):
        config(**options_of(pair))


@pytest.mark.parametrize("pair", AT_FIRST_ROLLOUT, ids=title)
def test_the_first_rollout_rejects_a_pair_and_names_both(tmp_path, pair):
    trainer = make_trainer(tmp_path, **options_of(pair))
    with pytest.raises(ValueError, match=REJECTED[pair]):
        trainer.train()


@pytest.mark.parametrize("row", ROWS, ids=title)
def test_a_combination_trains(tmp_path, row):
    trainer = make_trainer(tmp_path, max_steps=2, learning_rate=1e-2, **options_of(row))
    before = parameters(trainer)
    trainer.train()
    entries = logged(trainer)
    assert len(entries) == 2
    assert all(math.isfinite(entry["loss"]) for entry in entries)
    assert any(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())

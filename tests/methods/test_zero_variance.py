"""Zero-variance filtering: which groups are trained on; `test_shrunken_batches.py` has the loss's divisors."""

import torch

from canon_trl import Rollout
from canon_trl.token_advantages import TOKEN_ADVANTAGES, zero_variance

GROUPS = [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.1, 0.1, 0.2], [0.7 + 0.2 + 0.1, 1.0, 1.0]]


def test_a_case_by_hand():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        rewards = torch.tensor(GROUPS, dtype=dtype)
        assert zero_variance(rewards).tolist() == [[True], [False], [False], [True], [False]]
    assert zero_variance(torch.tensor([[1, 0], [1, 1]])).tolist() == [[True], [False]]


def test_unscored_responses_do_not_count():
    nan = torch.nan
    rewards = torch.tensor([[1.0, 0.0, nan], [1.0, nan, 1.0], [nan, nan, nan], [nan, nan, 1.0]])
    assert zero_variance(rewards).tolist() == [[True], [False], [False], [False]]


def test_it_reads_the_rewards_of_a_rollout():
    rewards = torch.tensor(GROUPS)
    assert torch.equal(TOKEN_ADVANTAGES["zero_variance"](Rollout.example(rewards=rewards)), zero_variance(rewards))

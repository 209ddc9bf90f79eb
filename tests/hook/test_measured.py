"""Numbers of the last optimiser step: what they average over, and how long they are kept."""

import pytest
import torch
from accelerate import Accelerator

from canon_trl.hook.measured import MeanEntropy, Measured


def test_every_token_has_the_same_weight_in_the_entropy():
    """One token of 0.5, then two of 1.5 and 2.5: (0.5 + 1.5 + 2.5) / 3, not the mean of 0.5 and 2.0."""
    entropy = MeanEntropy(Accelerator(cpu=True))
    entropy.add(torch.tensor([[0.5, 9.0]]), torch.tensor([[True, False]]))
    entropy.add(torch.tensor([[1.5, 2.5]]), torch.tensor([[True, True]]))
    assert entropy.take() == 1.5
    assert entropy.take() is None


def test_masked_tokens_never_count():
    entropy = MeanEntropy(Accelerator(cpu=True))
    entropy.add(torch.tensor([[0.25, torch.nan]]), torch.tensor([[True, False]]))
    assert entropy.take() == 0.25


def test_logged_numbers_are_means_over_the_step():
    measured, log = Measured(Accelerator(cpu=True)), {"kl": [9.0]}
    assert measured.numbers == {}
    measured.open(log)
    log |= {"reward": [0.5], "step_time": [3.0], "entropy": [7.0]}
    log["kl"] += [0.1, 0.3]
    measured.open(log)  # the second micro-batch changes nothing
    measured.add(torch.tensor([[0.25]]), torch.tensor([[True]]))
    measured.close(log)
    assert measured.numbers == pytest.approx({"kl": 0.2, "reward": 0.5, "entropy": 0.25})

    log = {"kl": [0.5]}  # logging has emptied it
    measured.open({})
    measured.close(log)  # a step without a token
    assert measured.numbers == pytest.approx({"kl": 0.5, "reward": 0.5, "entropy": 0.25})

"""The built-in response metrics by hand."""

import math

import pytest
import torch

from canon_trl.metrics import METRICS, entropy_by_correctness, mean_over_response, random_metric

NAN = math.nan


def test_mean_over_response_by_hand():
    """The mean skips masked tokens and tokens that the sampler could not score; the mean of nothing is 0."""
    values = torch.tensor([[1.0, 2.0, 9.0], [NAN, 4.0, 6.0], [7.0, 7.0, 7.0], [NAN, NAN, 1.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 1, 0]])
    assert mean_over_response(values, mask).tolist() == [1.5, 5.0, 0.0, 0.0]


def test_long_means_in_bfloat16_keep_their_digits():
    values = torch.full((1, 4096), 0.3, dtype=torch.bfloat16)
    assert mean_over_response(values, torch.ones(1, 4096)).item() == pytest.approx(values[0, 0].item(), rel=1e-6)


def test_surprisal_is_positive():
    log_probs = torch.tensor([[-1.0, -3.0, -8.0]])
    assert METRICS["surprisal"](log_probs=log_probs, mask=torch.tensor([[True, True, False]])).tolist() == [2.0]


def test_length_counts_only_the_models_tokens():
    assert METRICS["length"](mask=torch.tensor([[True, False, True], [False, False, False]])).tolist() == [2.0, 0.0]


def test_entropies_of_right_and_wrong_responses_by_hand():
    """Means over tokens; a response without a reward counts for neither."""
    entropies, lengths = torch.tensor([[1.0, 2.0], [0.5, 8.0]]), torch.tensor([[10, 30], [40, 99]])
    accuracy = torch.tensor([[1.0, 0.0], [0.9999999, NAN]])
    means = entropy_by_correctness(entropies, lengths, accuracy)
    assert means == {"right": (1.0 * 10 + 0.5 * 40) / 50, "wrong": 2.0}
    assert entropy_by_correctness(entropies, lengths, torch.zeros(2, 2))["right"].isnan()
    assert entropy_by_correctness(entropies, lengths, torch.full((2, 2), 0.999))["right"].isnan()


def test_random_metric_depends_on_seed_and_step():
    drawn = {(seed, step): random_metric((3, 4), seed=seed, step=step) for seed in (0, 1) for step in (0, 1)}
    assert torch.equal(drawn[1, 1], random_metric((3, 4), seed=1, step=1))
    assert len({tuple(each.flatten().tolist()) for each in drawn.values()}) == 4
    assert all(each.shape == (3, 4) and (0 <= each).all() and (each < 1).all() for each in drawn.values())

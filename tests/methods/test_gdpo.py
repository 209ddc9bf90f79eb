"""GDPO and GRPO scaled over the batch: TRL's arithmetic bit for bit, published numbers, and cases by hand."""

import pytest
import torch
from golden_cases import assert_golden, cases, tensor
from trl.trainer.utils import nanstd

from canon_trl import Rollout
from canon_trl.advantages import ESTIMATORS, dr_grpo_advantage, gdpo_advantage, grpo_batch_advantage

NAN = float("nan")


def trl_gdpo(rewards_per_func, weights, group_size):
    """`multi_objective_aggregation="normalize_then_sum"` in `GRPOTrainer`, from `(N, F)` to `(N,)`."""
    unscorable = torch.isnan(rewards_per_func).all(dim=1)
    grouped = rewards_per_func.view(-1, group_size, len(weights))
    mean_k = torch.nanmean(grouped, dim=1, keepdim=True)
    std_k = nanstd(grouped, dim=1, keepdim=True) if group_size > 1 else torch.zeros_like(mean_k)
    reward_k = ((grouped - mean_k) / (std_k + 1e-4)).view(-1, len(weights))
    rewards = (reward_k * weights.unsqueeze(0)).nansum(dim=1)
    rewards[unscorable] = torch.nan
    std = nanstd(rewards).expand_as(rewards) if rewards.numel() > 1 else torch.zeros_like(rewards)
    return torch.nan_to_num((rewards - torch.nanmean(rewards)) / (std + 1e-4), nan=0.0)


def trl_batch(rewards, group_size):
    """`scale_rewards="batch"` in `GRPOTrainer`, on `(N,)`."""
    mean = torch.nanmean(rewards.view(-1, group_size), dim=1).repeat_interleave(group_size, dim=0)
    std = nanstd(rewards).expand_as(rewards) if rewards.numel() > 1 else torch.zeros_like(rewards)
    return torch.nan_to_num((rewards - mean) / (std + 1e-4), nan=0.0)


def random_rewards(shape, *, seed, kind, unscored):
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=random)
    rewards = (drawn > 0.5).float() if kind == "binary" else 3 * drawn + 7
    return rewards.masked_fill(torch.rand(shape, generator=random) < unscored, NAN)


@pytest.mark.parametrize("unscored", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("kind", ["binary", "real"])
@pytest.mark.parametrize("shape", [(2, 4, 1), (3, 7, 2), (1, 2, 3), (16, 16, 3), (5, 1, 2), (1, 1, 1)], ids=str)
def test_trls_numbers_bit_for_bit(shape, kind, unscored):
    weights = torch.tensor([1.0, -0.3, 0.0])[: shape[-1]]
    for seed in range(20):
        rewards = random_rewards(shape, seed=seed, kind=kind, unscored=unscored)
        ours = gdpo_advantage(rewards, weights).flatten()
        assert torch.equal(ours, trl_gdpo(rewards.flatten(0, 1), weights, shape[1]))
        summed = rewards[..., 0].contiguous()  # the order of additions depends on the layout in memory
        assert torch.equal(grpo_batch_advantage(summed).flatten(), trl_batch(summed.flatten(), shape[1]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "case", [case for case in cases("wave1_code", flavour="trl") if case["method"] == "gdpo"], ids=lambda c: c["name"]
)
def test_golden_numbers(case, dtype):
    given = case["inputs"]
    rewards = [[[NAN if r is None else r for r in row] for row in group] for group in given["rewards"]]
    got = gdpo_advantage(tensor(rewards, dtype), tensor(given["weights"], dtype), eps=given["epsilon"])
    assert_golden(got, case["expected"]["advantages"])


def test_cases_by_hand():
    # The first function standardises to -1, 1 (times sqrt(1/2)), the second to 1, -1: they cancel where both differ.
    rewards = torch.tensor([[[0.0, 5.0], [1.0, 3.0]], [[0.0, 2.0], [1.0, 2.0]]], dtype=torch.float64)
    got = gdpo_advantage(rewards, torch.ones(2, dtype=torch.float64), eps=1e-12)
    # s = 0, 0, -1, 1 (times sqrt(1/2)), with standard deviation sqrt(2/3) (times sqrt(1/2))
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.0], [-1.0, 1.0]], dtype=torch.float64) * 1.5**0.5)
    # Rewards 0, 1 and 0, 3: centred -1/2, 1/2 and -3/2, 3/2; the standard deviation of all four is sqrt(2)
    got = grpo_batch_advantage(torch.tensor([[0.0, 1.0], [0.0, 3.0]], dtype=torch.float64), eps=1e-12)
    torch.testing.assert_close(got, torch.tensor([[-0.5, 0.5], [-1.5, 1.5]], dtype=torch.float64) / 2**0.5)


def test_scaling_over_the_batch_keeps_the_direction_of_dr_grpo():
    rewards = random_rewards((4, 6), seed=0, kind="real", unscored=0.2)
    scale = nanstd(rewards.flatten()) + 1e-4
    torch.testing.assert_close(grpo_batch_advantage(rewards), dr_grpo_advantage(rewards) / scale)


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_equal_rewards_give_exactly_0(size):
    """Also for rewards whose computed mean differs by rounding, and if only a function of weight 0 differs."""
    rewards = torch.tensor([0.1, 1 / 3, 0.7, NAN]).unsqueeze(1).expand(4, size).contiguous()
    assert (grpo_batch_advantage(rewards) == 0).all()
    for measured in (rewards, torch.arange(size).float().expand(4, size)):
        assert (gdpo_advantage(torch.stack([rewards, measured], dim=-1), torch.tensor([1.0, 0.0])) == 0).all()


def test_what_they_read():
    assert ESTIMATORS["gdpo"].reads == ("rewards_per_func", "reward_weights")
    assert ESTIMATORS["grpo_batch"].reads == ("rewards",)
    rewards, weights = torch.tensor([[[1, 0], [0, 0], [1, 1]]]), torch.tensor([1.0, 0.5])
    rollout = Rollout.example(rewards_per_func=rewards.float(), reward_weights=weights)
    assert torch.equal(ESTIMATORS["gdpo"](rollout), gdpo_advantage(rewards, weights))  # also of integers

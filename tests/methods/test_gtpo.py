"""GTPO: a case by hand, its reductions to GRPO and GRPO-S, and what each reading makes of it."""

import pytest
import torch
from golden_cases import assert_golden, tensor

from canon_trl.advantages import grpo_advantage, grpo_s_advantage, gtpo_advantage
from canon_trl.advantages.entropy_weighting import shaped_rewards

READINGS = ["with_zeros", "together", "apart"]


def random_batch(groups=4, responses=6, width=5):
    random = torch.Generator().manual_seed(0)
    rewards = torch.randint(0, 2, (groups, responses), generator=random).double()
    entropies = torch.rand(groups, responses, width, generator=random, dtype=torch.float64) + 0.01
    lengths = torch.randint(1, width + 1, (groups, responses, 1), generator=random)
    return rewards, entropies, torch.arange(width) < lengths


def test_a_case_by_hand():
    # Two right responses of 2 and 1 tokens, a wrong one of 1 token.
    rewards = tensor([[1.0, 1.0, 0.0]])
    entropies = tensor([[[0.5, 0.3], [1.5, 9.0], [0.2, 9.0]]])
    mask = torch.tensor([[[True, True], [True, False], [True, False]]])
    # Position 1: shares 0.5 and 1.5, alone 1. Position 2: alone 1. With zeros, the right ones' rewards are
    # 1.05, 1.15, 1.1 and 0, the wrong one's 0, 0, 0 and -1.1.
    gains, losses = tensor([[1.05, 1.1, 1.15, 0.0]]), tensor([[0.0, 0.0, 0.0, -1.1]])
    gains, losses = grpo_advantage(gains, eps=1e-15)[0], grpo_advantage(losses, eps=1e-15)[0]
    want = torch.stack([gains[0], gains[1], gains[2], tensor(0.0), losses[3], tensor(0.0)]).view(1, 3, 2)
    assert_golden(gtpo_advantage(rewards, entropies, mask), want.tolist())
    together = grpo_advantage(tensor([[1.05, 1.1, 1.15, -1.1]]), eps=1e-15)[0].tolist()
    want = [[[together[0], together[1]], [together[2], 0.0], [together[3], 0.0]]]
    assert_golden(gtpo_advantage(rewards, entropies, mask, standardise="together"), want)
    assert_golden(
        gtpo_advantage(rewards, entropies, mask, standardise="apart"), [[[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]]
    )


@pytest.mark.parametrize("standardise", READINGS)
def test_responses_of_one_token_make_it_grpo_s(standardise):
    rewards, entropies, _ = random_batch(width=1)
    advantages = gtpo_advantage(
        rewards, entropies, torch.ones_like(entropies), standardise=standardise, scope="group", entropy_weight=0.3
    )
    want = grpo_s_advantage(rewards, entropies.squeeze(-1), standardise=standardise, entropy_weight=0.3)
    torch.testing.assert_close(advantages.squeeze(-1), want)


@pytest.mark.parametrize("scope", ["group", "batch"])
@pytest.mark.parametrize("standardise", ["with_zeros", "together"])
@pytest.mark.parametrize("options", [{"entropy_weight": 0.0}, {}], ids=str)
def test_without_differences_in_entropy_it_is_grpo_over_tokens(standardise, scope, options):
    rewards, entropies, mask = random_batch()
    if not options:
        entropies = torch.full_like(entropies, 0.4)
    tokens = rewards.unsqueeze(-1).expand(mask.shape).masked_fill(~mask, torch.nan)
    want = grpo_advantage(tokens.reshape(1 if scope == "batch" else len(rewards), -1), eps=1e-15).view(mask.shape)
    advantages = gtpo_advantage(rewards, entropies, mask, standardise=standardise, scope=scope, **options)
    torch.testing.assert_close(advantages, want)


@pytest.mark.parametrize("scope", ["group", "batch"])
def test_apart_neither_weight_changes_the_result(scope):
    rewards, entropies, mask = random_batch()
    advantages = gtpo_advantage(rewards, entropies, mask, standardise="apart", scope=scope)
    for weights in ({"reward_weight": 0.3}, {"entropy_weight": 0.9}, {"reward_weight": 2.0, "entropy_weight": 1e-3}):
        other = gtpo_advantage(rewards, entropies, mask, standardise="apart", scope=scope, **weights)
        torch.testing.assert_close(other, advantages, rtol=1e-9, atol=1e-9)
    for correct in (0.0, 1.0):
        chosen = (rewards == correct).unsqueeze(-1)
        assert float(advantages.masked_fill(~chosen, 0.0).sum()) == pytest.approx(0.0, abs=1e-9)


def test_the_entropy_part_moves_rewards_between_tokens_and_adds_none():
    """Proposition 2.2: at each position the s of the right responses sum to (a1 + a2) times their number."""
    rewards, entropies, mask = random_batch()
    right = (mask & (rewards == 1).unsqueeze(-1)).transpose(1, 2)
    wrong = (mask & (rewards == 0).unsqueeze(-1)).transpose(1, 2)
    shaped = shaped_rewards(entropies.transpose(1, 2), right, wrong, 0.9, 0.1)
    torch.testing.assert_close(shaped.masked_fill(~right, 0.0).sum(dim=-1), right.sum(dim=-1).double())
    torch.testing.assert_close(shaped.masked_fill(~wrong, 0.0).sum(dim=-1), -wrong.sum(dim=-1).double())


@pytest.mark.parametrize("standardise", READINGS)
def test_what_lies_off_the_mask_never_counts(standardise):
    rewards, entropies, mask = random_batch()
    advantages = gtpo_advantage(rewards, entropies, mask, standardise=standardise)
    assert (advantages[~mask] == 0).all()
    other = gtpo_advantage(rewards, entropies.masked_fill(~mask, 7.0), mask, standardise=standardise)
    assert torch.equal(advantages, other)
    wider = [torch.nn.functional.pad(each, (0, 3)) for each in (entropies, mask)]
    padded = gtpo_advantage(rewards, *wider, standardise=standardise)
    torch.testing.assert_close(padded[..., :-3], advantages)


def test_a_batch_is_standardised_as_a_whole():
    rewards, entropies, mask = random_batch()
    batch = gtpo_advantage(rewards, entropies, mask, standardise="together")
    groups = gtpo_advantage(rewards, entropies, mask, standardise="together", scope="group")
    assert float(batch[mask].sum()) == pytest.approx(0.0, abs=1e-9)
    assert batch.sum(dim=(1, 2)).abs().min() > 1e-3
    torch.testing.assert_close(groups.sum(dim=(1, 2)), torch.zeros(len(rewards), dtype=torch.float64))


def test_groups_without_spread_do_not_count_unless_they_are_trained_on():
    rewards, entropies, mask = random_batch()
    rewards[0] = 1.0
    advantages = gtpo_advantage(rewards, entropies, mask)
    assert (advantages[0] == 0).all()
    torch.testing.assert_close(advantages[1:], gtpo_advantage(rewards[1:], entropies[1:], mask[1:]))
    trained = gtpo_advantage(rewards, entropies, mask, train_groups_without_spread=True)
    assert (trained[0][mask[0]] != 0).all()


def test_unscored_responses_and_entropies_get_0_and_change_nothing_for_the_others():
    rewards, entropies, mask = random_batch()
    unscored = rewards.clone()
    unscored[1, 2] = torch.nan
    without = mask.clone()
    without[1, 2] = False
    torch.testing.assert_close(gtpo_advantage(unscored, entropies, mask), gtpo_advantage(rewards, entropies, without))
    entropies[1, 2] = torch.nan
    torch.testing.assert_close(gtpo_advantage(rewards, entropies, mask), gtpo_advantage(unscored, entropies, without))


def test_dtypes():
    rewards, entropies, mask = random_batch()
    assert gtpo_advantage(rewards.bfloat16(), entropies.bfloat16(), mask).dtype == torch.bfloat16
    assert gtpo_advantage(rewards.int(), entropies.float(), mask.int()).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "prompt"}, "scope='prompt' must be 'batch' or 'group'"),
        ({"standardise": "alone"}, "standardise='alone' must be 'with_zeros', 'together' or 'apart'"),
        ({"floor": 0.0}, r"floor=0.0 must lie in \(0, 1e6\]"),
    ],
    ids=str,
)
def test_options_that_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        gtpo_advantage(*random_batch(), **options)


def test_shapes_must_agree():
    rewards, entropies, mask = random_batch()
    with pytest.raises(ValueError, match=r"entropies \(4, 6, 4\) and mask \(4, 6, 5\) must have the shape of rewards"):
        gtpo_advantage(rewards, entropies[..., :4], mask)

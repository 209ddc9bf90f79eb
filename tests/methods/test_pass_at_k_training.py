"""Pass@k training as a function: numbers from the formula, and the gradient that it estimates."""

import math
from itertools import combinations, product

import pytest
import torch
from golden_cases import assert_golden, cases, tensor

from canon_trl import Rollout
from canon_trl.advantages import ESTIMATORS, STAGE, grpo_advantage, pass_at_k_advantage
from canon_trl.evaluation import pass_at_k
from canon_trl.method import find

GOLDEN = [case for case in cases("wave1") if case["method"] == "pass_at_k"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_numbers_from_the_formula(case, dtype):
    advantages = pass_at_k_advantage(tensor(case["inputs"]["rewards"], dtype), k=case["inputs"]["k"])
    assert_golden(advantages, case["expected"])


def group(right: int, size: int) -> torch.Tensor:
    return tensor([[1.0] * right + [0.0] * (size - right)])


def test_a_case_by_hand():
    # One of 4 is right: 3 of the 6 pairs fail, F = 1/2 and S = 1/2. A wrong response is in 3 pairs, of which 2 fail.
    assert_golden(pass_at_k_advantage(group(1, 4), k=2), [[1.0, *[(1 / 2 - 2 / 3) / (1 / 2)] * 3]])
    # Two of 4: 1 of 6 pairs fails, F = 1/6 and S = sqrt(5)/6. A wrong response is in 3 pairs, of which 1 fails.
    root = math.sqrt(5)
    assert_golden(pass_at_k_advantage(group(2, 4), k=2), [[1 / root, 1 / root, -1 / root, -1 / root]])


@pytest.mark.parametrize("right", [1, 3, 7])
def test_k_1_is_grpo_with_the_population_deviation(right, size=8):
    sample = grpo_advantage(group(right, size), eps=1e-15)
    torch.testing.assert_close(pass_at_k_advantage(group(right, size), k=1), sample * math.sqrt(size / (size - 1)))
    chance = right / size
    by_hand = [math.sqrt((1 - chance) / chance)] * right + [-math.sqrt(chance / (1 - chance))] * (size - right)
    assert_golden(pass_at_k_advantage(group(right, size), k=1), [by_hand])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("right", range(1, 8))
def test_it_is_grpo_over_all_sets_of_k_responses(right, k, size=8):
    """Each set is rewarded with its best reward; a response gets the mean advantage of the sets that contain it."""
    rewards = group(right, size)[0].tolist()
    sets = list(combinations(range(size), k))
    best = tensor([[max(rewards[index] for index in chosen) for chosen in sets]])
    advantages = grpo_advantage(best, eps=1e-15) * math.sqrt(len(sets) / (len(sets) - 1))
    means = [
        sum(advantage for advantage, chosen in zip(advantages[0].tolist(), sets, strict=True) if index in chosen)
        / math.comb(size - 1, k - 1)
        for index in range(size)
    ]
    assert_golden(pass_at_k_advantage(group(right, size), k=k), [means])


@pytest.mark.parametrize("k", [1, 2, 4, 8, 15])
def test_the_advantages_of_a_group_sum_to_0(k):
    rewards = torch.cat([group(right, 16) for right in range(17)])
    assert_golden(pass_at_k_advantage(rewards, k=k).sum(dim=1), [0.0] * 17)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("logits", [[0.0, 0.0, 0.0], [1.0, -2.0, 0.3], [-3.0, 1.0, 0.5]], ids=str)
def test_without_the_deviation_its_expectation_is_the_gradient_of_pass_at_k(logits, k, size=4):
    """A policy over three answers, of which the first and the last are right, and every group that it can sample."""
    correct = tensor([1.0, 0.0, 1.0])
    policy = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    surrogate = tensor(0.0)
    for answers in product(range(3), repeat=size):
        rewards = correct[list(answers)].unsqueeze(0)
        pass_rate = float(pass_at_k(size, int(rewards.sum()), k))
        advantages = pass_at_k_advantage(rewards, k=k)[0] * math.sqrt(pass_rate * (1 - pass_rate))
        log_probs = policy.log_softmax(dim=0)[list(answers)]
        chance = log_probs.detach().sum().exp()
        surrogate = surrogate + chance * (advantages * log_probs).mean() * k * size / (size - k)
    (estimated,) = torch.autograd.grad(surrogate, policy)
    wrong = 1 - (policy.softmax(dim=0) * correct).sum()
    (exact,) = torch.autograd.grad(1 - wrong**k, policy)
    torch.testing.assert_close(estimated, exact)


@pytest.mark.parametrize(
    ("rewards", "k"),
    [
        ([0.0, 0.0, 0.0], 2),  # no right one
        ([1.0, 1.0, 1.0], 2),
        ([1.0, 1.0, 0.0], 2),  # every pair succeeds
        ([1.0, 0.0, 0.0], 3),  # one set, nothing to compare
        ([1.0, torch.nan, 0.0], 3),  # two scored ones make no set of three
        ([1.0, torch.nan, torch.nan], 1),
        ([torch.nan] * 3, 1),
    ],
    ids=str,
)
def test_groups_with_advantage_0(rewards, k):
    assert pass_at_k_advantage(torch.tensor([rewards]), k=k).tolist() == [[0.0] * 3]


def test_an_unscored_response_changes_nothing_for_the_others():
    with_one = pass_at_k_advantage(tensor([[1.0, torch.nan, 0.0, 0.0, 0.0]]), k=2)
    assert with_one[0, 1] == 0
    assert torch.equal(with_one[:, [0, 2, 3, 4]], pass_at_k_advantage(group(1, 4), k=2))


def test_large_groups_in_float32():
    """C(1024, 64) overflows; the product of ratios does not."""
    advantages = pass_at_k_advantage(group(3, 1024).float(), k=64)
    torch.testing.assert_close(advantages.double(), pass_at_k_advantage(group(3, 1024), k=64), atol=0.0, rtol=1e-6)
    assert advantages[0, 0] > 0 > advantages[0, -1]


def test_bfloat16_and_integers():
    assert pass_at_k_advantage(torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16), k=1).dtype == torch.bfloat16
    assert pass_at_k_advantage(torch.tensor([[1, 0]]), k=1).tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (5, "k=5 must be at most 4, the number of responses in a group"),
        (0, r"k=0 must lie in \[1, inf\)"),
        (2.0, "k=2.0 must be a whole number"),
    ],
)
def test_a_k_that_is_rejected(k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k_advantage(group(1, 4), k=k)


def test_as_an_estimator():
    rollout = Rollout.example(rewards=group(1, 4))
    estimator = find(STAGE, {"pass_at_k": {"k": 2}})
    assert torch.equal(estimator(rollout), pass_at_k_advantage(group(1, 4), k=2))
    assert estimator.smallest_group == 3 and estimator.reward_range == "{0, 1}"
    in_evaluation = Rollout.example(rewards=group(1, 1))
    assert estimator(in_evaluation).tolist() == [[0.0]]
    assert find(STAGE, {"mix": {"grpo": 0.5, "pass_at_k": {"weight": 0.5, "k": 2}}}).smallest_group == 3
    assert ESTIMATORS["grpo"].smallest_group == ESTIMATORS["mix"].smallest_group == 1
    with pytest.raises(ValueError, match=r"needs a value for \['k'\]"):
        find(STAGE, "pass_at_k")

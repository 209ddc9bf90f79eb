"""Estimators by name: their inputs and options, weighted sums of them, and users' functions."""

from functools import partial

import pytest
import torch

from canon_trl import Rollout, requires_metrics
from canon_trl.advantages import (
    ESTIMATORS,
    STAGE,
    canon_advantage,
    dr_grpo_advantage,
    grpo_advantage,
    opo_advantage,
    w_reinforce_advantage,
)
from canon_trl.method import find
from canon_trl.metrics import get_metrics

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
LENGTHS = torch.tensor([[2, 4, 6, 8], [1, 2, 3, 4]])
ROLLOUT = Rollout.example(rewards=REWARDS, lengths=LENGTHS, metrics={"entropy": LENGTHS.float()})


def test_an_estimator_is_called_with_a_rollout_and_its_options():
    assert torch.equal(ESTIMATORS["grpo"](ROLLOUT, eps=1e-4), grpo_advantage(REWARDS, eps=1e-4))
    assert torch.equal(ESTIMATORS["opo"](ROLLOUT), opo_advantage(REWARDS, LENGTHS))
    ours = ESTIMATORS["canon"](ROLLOUT, metric="entropy", mu=0.5)
    assert torch.equal(ours, canon_advantage(REWARDS, LENGTHS.float(), mu=0.5))


def test_what_estimators_read_and_cite():
    assert ESTIMATORS["opo"].reads == ("rewards", "lengths")
    assert ESTIMATORS["a_grae"].reward_range == "[0, 1]"
    assert find(STAGE, "canon", {"metric": "length"}).required_metrics == ("length",)
    papers = {name: method.paper.id for name, method in ESTIMATORS.items() if method.paper is not None}
    assert papers["grpo"] == "2402.03300" and papers["psr"] == papers["nsr"] == "2506.01347"
    assert ESTIMATORS["mix"].paper is None


def test_a_mix_is_a_weighted_sum():
    # Dr.GRPO: r - mean(r), with means 1/4 and 1/2. OPO: r - sum(L r) / sum(L), with 2/20 and 3/10.
    dr_grpo = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.5, 0.5, -0.5, -0.5]])
    opo = torch.tensor([[0.9, -0.1, -0.1, -0.1], [0.7, 0.7, -0.3, -0.3]])
    method = find(STAGE, {"mix": {"dr_grpo": 0.25, "opo": 2.0}})
    torch.testing.assert_close(method(ROLLOUT), 0.25 * dr_grpo + 2.0 * opo)
    assert method.all_options == {"dr_grpo": 0.25, "opo": 2.0}
    assert {name: paper.id for name, paper in method.papers.items()} == {"dr_grpo": "2503.20783", "opo": "2505.23585"}


def test_a_mix_of_estimators_with_options():
    spec = {
        "canon": {"weight": 0.5, "metric": "length"},
        "w_reinforce": 0.25,
        "a_grae": {"weight": 0.25, "scale": False},
    }
    method = find(STAGE, "mix", spec)
    assert method.required_metrics == ("length",)
    assert method.reward_range == "{0, 1}"  # the narrower one of a_grae's and w_reinforce's
    rollout = Rollout.example(rewards=REWARDS, metrics={"length": LENGTHS.float()})
    expected = 0.5 * canon_advantage(REWARDS, LENGTHS.float()) + 0.25 * w_reinforce_advantage(REWARDS)
    expected += 0.25 * ESTIMATORS["a_grae"](rollout, scale=False)
    torch.testing.assert_close(method(rollout), expected)


def later_tokens_count_more(rewards: torch.Tensor, width: int) -> torch.Tensor:
    return rewards.unsqueeze(-1) * torch.arange(width)


def test_a_mix_with_a_token_level_estimator_is_token_level():
    rollout = Rollout.example(rewards=REWARDS, width=3)
    method = find(STAGE, {"mix": {"dr_grpo": 1.0, f"{__name__}:later_tokens_count_more": 2.0}})
    expected = dr_grpo_advantage(REWARDS).unsqueeze(-1) + 2.0 * REWARDS.unsqueeze(-1) * torch.arange(3)
    assert torch.equal(method(rollout), expected)


def shared(rewards, lengths):
    return rewards - lengths


def with_positional_option(rollout, bonus=1.0):
    return bonus * rollout.rewards


REFUSED = {
    "an unknown name in a mix": ({"mix": {"gropo": 1.0}}, r"advantage_estimator='gropo' is unknown \(did you mean"),
    "a weight that is not a number": ({"mix": {"grpo": "half"}}, "grpo: weight='half' must be a number"),
    "no weight": ({"mix": {"canon": {"metric": "length"}}}, "canon: weight=None must be a number"),
    "an option in a mix": ({"mix": {"grpo": {"weight": 1.0, "epz": 1}}}, r"no option 'epz' \(did you mean 'eps'\?\)"),
    "an empty mix": ("mix", "names no estimators"),
    "out of bounds, in a partial": (partial(grpo_advantage, eps=2e6), r"eps=2000000.0 must lie in \(0, 1e6\]"),
    "an unknown field": (lambda rewrds: rewrds, r"reads \['rewrds'\] \(did you mean 'rewards'\?\)"),
    "a wrong name for the rollout": (lambda batch: batch.rewards, r"reads \['batch'\].*available: .*'rollout'"),
    "a positional option": (with_positional_option, r"reads \['bonus'\].*Options must be keyword-only"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_specs(case):
    spec, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        find(STAGE, spec)


def test_user_functions_read_fields_or_the_whole_rollout():
    assert torch.equal(find(STAGE, shared)(ROLLOUT), REWARDS - LENGTHS)
    assert torch.equal(find(STAGE, lambda rollout: rollout.rewards)(ROLLOUT), REWARDS)

    def defined_for_some(rewards, *, bonus=1.0):
        return bonus * rewards

    defined_for_some.reward_range = "[0, 1]"
    method = find(STAGE, partial(defined_for_some, bonus=3.0))
    assert method.reward_range == "[0, 1]" and method.all_options == {"bonus": 3.0}
    assert torch.equal(method(ROLLOUT), 3.0 * REWARDS)


def loudness(completions):
    return [text.count("!") for text in completions]


def test_metrics_are_declared_by_name_or_as_functions():
    @requires_metrics("entropy", loudness)
    def estimator(rollout, *, scale=1.0):
        return scale * rollout.metrics["entropy"] + rollout.metrics["loudness"]

    for function in (estimator, partial(estimator, scale=2.0), partial(partial(estimator), scale=2.0)):
        assert find(STAGE, function).required_metrics == ("entropy", loudness)
    metrics = get_metrics(find(STAGE, estimator).required_metrics)
    assert list(metrics) == ["entropy", "loudness"] and metrics["loudness"] is loudness
    values = find(STAGE, estimator)(Rollout.example(metrics=("entropy", "loudness")))
    assert values.shape == (2, 4)
    with pytest.raises(ValueError, match=r"'entropi' is unknown \(did you mean 'entropy'\?\)"):
        get_metrics(["entropi"])
    with pytest.raises(ValueError, match="two different metrics are named '<lambda>'"):
        get_metrics([lambda mask: mask, lambda mask: mask])


def test_example_rollouts_are_reproducible_and_take_attributes():
    example, again = Rollout.example(3, 5, seed=7), Rollout.example(3, 5, seed=7)
    assert example.rewards.shape == example.lengths.shape == (3, 5) and torch.equal(example.rewards, again.rewards)
    per_func = torch.tensor([[[1.0, 0.5], [0.0, 0.5]]])
    given = Rollout.example(rewards=per_func.sum(dim=-1), rewards_per_func=per_func, step=3)
    assert given.step == 3 and given.reward_names == ("reward_0", "reward_1")
    assert torch.equal(given.reward_weights, torch.ones(2))
    unscored = Rollout.example(rewards=torch.tensor([[1.0, float("nan")]]))
    assert unscored.valid.tolist() == [[True, False]] and float(unscored.accuracy) == 1.0

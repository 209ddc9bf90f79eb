"""Every method with every method of every other stage: trained for two steps, or rejected with a reason.

The methods come from the dicts of the stages, so a new one is included by its line there. A few runs cover every pair
of methods that is not rejected.
"""

import math
from contextlib import nullcontext
from itertools import combinations
from typing import Any

import pytest
import torch
from toy import OPTIONS as SMALL
from toy import logged, make_trainer, parameters

from canon_trl import CANONConfig
from canon_trl.advantages import ESTIMATORS
from canon_trl.controllers import CONTROLLERS
from canon_trl.controllers.protocol import steered_knob
from canon_trl.loss_terms import LOSS_TERMS
from canon_trl.method import Method
from canon_trl.policy_losses import POLICY_LOSSES
from canon_trl.policy_losses.kinds import Whole
from canon_trl.policy_rewards import POLICY_REWARDS
from canon_trl.token_advantages import TOKEN_ADVANTAGES

STAGES = {
    "policy_reward": POLICY_REWARDS,
    "advantage_estimator": ESTIMATORS,
    "token_advantage": TOKEN_ADVANTAGES,
    "policy_loss": POLICY_LOSSES,
    "loss_term": LOSS_TERMS,
    "controller": CONTROLLERS,
}
# Options with which a method takes effect on two groups of four short responses, where its defaults do not.
OPTIONS: dict[str, dict[str, Any]] = {
    "mix": {"canon": 0.5, "opo": 0.5},
    "pass_at_k": {"k": 2},
    "pshw": {"low": 0},
    "dmmpt": {"tau": 0.5, "sigma": 9.0},
    "clip_b": {"mu": 0.5},
    "clip_cov": {"low": 0.0, "high": 9.0, "ratio": 0.5},
    "kl_cov": {"fraction": 0.2},
    "dppo": {"low": 0.01, "high": 0.01},
    "disco": {"beta": 10.0},
    "ter": {"coef": 0.1},
    "tea": {"scale": 0.5},
    "e3_temperature": {"target_entropy": 1.0, "init_steps": 0},
    "adaptive_clip": {"step": 0.05},
}

NOT_NEGATIVE = ("self_consistency", "majority_vote")  # policy rewards

Chosen = tuple[str, str]  # a stage's field and a method of it


def ignores_advantages(policy_loss: Method) -> bool:
    return isinstance(policy_loss, Whole) and not {"advantages", "tokens"} & {*policy_loss.reads}


def reason_to_reject(first: Chosen, second: Chosen) -> str | None:
    """Words of the error that rejects the two methods together; `None` if they can be combined."""
    for (field, name), (other, method) in ((first, second), (second, first)):
        if field == "policy_loss" and other == "token_advantage" and ignores_advantages(POLICY_LOSSES[name]):
            return f"{other}='{method}' would be ignored: policy_loss='{name}' reads no advantages"
        whole = field == "policy_loss" and not {"response_advantages", "advantages"} & {*POLICY_LOSSES[name].reads}
        if whole and other == "advantage_estimator" and ignores_advantages(POLICY_LOSSES[name]) and method != "canon":
            return f"{other}='{method}' would be ignored: policy_loss='{name}' reads no advantages"
        if field == "loss_term" and "beta" in LOSS_TERMS[name].reads and isinstance(POLICY_LOSSES.get(method), Whole):
            return f"{field}='{name}' changes TRL's KL term, which {other}='{method}' replaces"
        if field == "policy_reward" and other == "advantage_estimator" and ESTIMATORS[method].reward_range:
            if ESTIMATORS[method].reward_range != "[0, inf)" or name not in NOT_NEGATIVE:
                return "the advantage estimator is defined for rewards in .*, but the weighted sum"
        if field == "policy_reward" and other == "policy_loss" and POLICY_LOSSES[method].reward_range:
            return f"{method} is defined for rewards in .*, but the weighted sum"
        if field == "controller" and other == "policy_loss" and steered_knob(CONTROLLERS[name]) == "epsilon_high":
            if isinstance(POLICY_LOSSES[method], Whole):
                return f"controller '{name}' steers 'epsilon_high', which policy_loss='{method}' does not read"
            if not (POLICY_LOSSES[method].clips and POLICY_LOSSES[method].clips_high):
                return f"controller '{name}' steers 'epsilon_high', but '{method}' clips no ratios"
    return None


PAIRS = [
    (first, second)
    for one, other in combinations(STAGES, 2)
    for first in [(one, name) for name in STAGES[one]]
    for second in [(other, name) for name in STAGES[other]]
]
REJECTED = {(first, second): words for first, second in PAIRS if (words := reason_to_reject(first, second))}


def covering(pairs: list[tuple[Chosen, Chosen]]) -> list[dict[str, str]]:
    """A few choices of at most one method per stage that cover all valid pairs and contain no invalid one."""
    left = dict.fromkeys(pairs)
    rows = []
    while left:
        row = dict(next(iter(left)))
        for field in STAGES:
            if field not in row:
                gains = {name: gain for name in STAGES[field] if (gain := new_pairs((field, name), row, left))}
                if gains:
                    row[field] = max(gains, key=gains.get)
        rows.append({field: row[field] for field in STAGES if field in row})
        left = {pair: None for pair in left if not set(pair) <= row.items()}
    return rows


def new_pairs(chosen: Chosen, row: dict[str, str], left: dict[tuple[Chosen, Chosen], None]) -> int:
    """How many of the remaining pairs a choice adds to a row; 0 if the row contains a method that excludes it."""
    pairs = [pair for other in row.items() for pair in ((chosen, other), (other, chosen))]
    return 0 if any(pair in REJECTED for pair in pairs) else sum(pair in left for pair in pairs)


ROWS = covering([pair for pair in PAIRS if pair not in REJECTED])


def options_of(row: dict[str, str]) -> dict[str, Any]:
    """The options of a config that chooses the methods of a row."""
    options: dict[str, Any] = {"num_iterations": 2, "max_steps": 2, "learning_rate": 1e-2, "canon_mu": 0.7}
    if "canon" != row.get("advantage_estimator", "canon") or row.get("policy_loss") == "disco":
        options.pop("canon_mu")
    if any("ref_log_probs" in STAGES[field][name].reads for field, name in row.items()):
        options |= {"beta": 0.05, "use_bias_correction_kl": False}
    return options | {field: {name: OPTIONS.get(name, {})} for field, name in row.items()}


def title(row: dict[str, str]) -> str:
    return "+".join(row.values())


def test_every_pair_is_trained_or_rejected():
    trained = {pair for row in ROWS for pair in combinations(row.items(), 2)}
    assert trained | REJECTED.keys() == set(PAIRS)
    assert not trained & REJECTED.keys()


@pytest.mark.parametrize("pair", REJECTED, ids=lambda pair: title(dict(pair)))
def test_an_incompatible_pair_is_rejected_with_the_reason(tmp_path, pair):
    """The error comes before a model is loaded, or at the first rollout where it depends on rewards."""
    first = (
        nullcontext() if "defined for rewards" in REJECTED[pair] else pytest.raises(ValueError, match=REJECTED[pair])
    )
    with first:
        CANONConfig(str(tmp_path), **(SMALL | options_of(dict(pair))))
    with pytest.raises(ValueError, match=REJECTED[pair]):
        make_trainer(tmp_path, **options_of(dict(pair))).train()


@pytest.mark.parametrize("row", ROWS, ids=title)
def test_a_combination_trains(tmp_path, row):
    trainer = make_trainer(tmp_path, **options_of(row))
    before = parameters(trainer)
    trainer.train()
    entries = logged(trainer)
    assert len(entries) == 2
    assert all(math.isfinite(entry["loss"]) for entry in entries)
    assert any(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())

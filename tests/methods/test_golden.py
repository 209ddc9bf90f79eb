"""The methods, compared with numbers of their reference implementations."""

import pytest
import torch
from golden_cases import assert_golden, cases, tensor

from canon_trl.advantages import (
    a_grae_advantage,
    canon_advantage,
    dr_grpo_advantage,
    grpo_advantage,
    nsr_advantage,
    opo_advantage,
    optimal_value,
    psr_advantage,
    reinforce_pp_baseline_advantage,
    rloo_advantage,
    w_reinforce_advantage,
)
from canon_trl.metrics import mean_over_response
from canon_trl.schedules import (
    cosine_inter_to_intra,
    cosine_intra_to_inter,
    cosine_restarts,
    inter_to_intra,
    intra_to_inter,
)

DTYPES = [torch.float64, torch.float32]
COSINE = {"plain": cosine_intra_to_inter, "r": cosine_inter_to_intra}


def by_name(found: list) -> list:
    assert found, "no golden case matches"
    return [pytest.param(case["inputs"], case["expected"], id=case["name"]) for case in found]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("inputs", "expected"), by_name([case for case in cases("canon") if "group_of_one" not in case["name"]])
)
def test_canon(inputs, expected, dtype):
    advantages = canon_advantage(
        tensor(inputs["rewards"], dtype),
        tensor(inputs["metric"], dtype),
        mu=inputs["mu"],
        alpha=inputs["alpha"],
        alpha_group="higher" if inputs["variant"] == "length" else "lower",
    )
    assert_golden(advantages, expected["advantages"])


@pytest.mark.parametrize(
    ("inputs", "expected"), by_name([case for case in cases("canon") if "group_of_one" in case["name"]])
)
def test_a_group_of_one_departs_from_the_reference(inputs, expected):
    advantages = canon_advantage(tensor(inputs["rewards"]), tensor(inputs["metric"]), mu=inputs["mu"])
    assert (advantages == 0).all()
    assert (tensor(expected["advantages"]) != 0).any()


@pytest.mark.parametrize(
    ("inputs", "expected"), by_name([case for case in cases("canon") if "entropy_tokens" in case["inputs"]])
)
def test_entropy_metric(inputs, expected):
    shape = tensor(inputs["metric"]).shape
    tokens, mask = tensor(inputs["entropy_tokens"]).flatten(0, 1), tensor(inputs["response_mask"]).flatten(0, 1)
    entropy = mean_over_response(tokens, mask).view(shape)
    assert_golden(entropy, inputs["metric"])


@pytest.mark.parametrize(("inputs", "expected"), by_name(cases("canon_schedules", kind="accuracy")))
def test_accuracy_schedules(inputs, expected):
    schedule = intra_to_inter if inputs["direction"] == "first_intra_later_inter" else inter_to_intra
    rewards, metric = tensor(inputs["rewards"]), tensor(inputs["metric"])
    mu = schedule(0, 1, rewards.mean())  # the reference does not clip accuracy to [0, 1]; a tensor is not checked
    assert_golden(mu, expected["mu"])
    assert_golden(canon_advantage(rewards, metric, mu=mu, alpha_group="lower"), expected["advantages"])


@pytest.mark.parametrize(("inputs", "expected"), by_name(cases("canon_schedules", kind="cosine_table")))
def test_cosine_schedules(inputs, expected):
    schedule = COSINE[inputs["version"]]
    mu = [schedule(step, inputs["total_steps"], 0.5) for step in inputs["steps"]]
    assert_golden(tensor(mu), expected["mu"])


@pytest.mark.parametrize(("inputs", "expected"), by_name(cases("canon_schedules", kind="cosine_step")))
def test_cosine_advantages(inputs, expected):
    mu = COSINE[inputs["version"]](inputs["step"], inputs["total_steps"], 0.5)
    advantages = canon_advantage(tensor(inputs["rewards"]), tensor(inputs["metric"]), mu=mu)
    assert mu == pytest.approx(expected["mu"], rel=1e-7)
    assert_golden(advantages, expected["advantages"])


@pytest.mark.parametrize(("inputs", "expected"), by_name(cases("canon_schedules", kind="cosine_value")))
def test_cosine_restarts(inputs, expected):
    options = {
        "total_steps": inputs["total_steps"],
        "warmup_steps": inputs["warmup_steps"],
        "cycles": inputs["cycles"],
    }
    value = [cosine_restarts(step, low=inputs["min"], high=inputs["max"], **options) for step in inputs["steps"]]
    assert_golden(tensor(value), expected["value"])


def baseline(method: str) -> list:
    return by_name([case for case in cases("baselines", method=method) if "group_of_one" not in case["name"]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "expected"), baseline("grpo"))
def test_grpo(inputs, expected, dtype):
    advantages = grpo_advantage(tensor(inputs["rewards"], dtype), eps=inputs["epsilon"])
    assert_golden(advantages, expected["advantages"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        pytest.param(function, *case.values, id=case.id)
        for function, method in [(dr_grpo_advantage, "dr_grpo"), (rloo_advantage, "rloo")]
        for case in baseline(method)
    ],
)
def test_centred(function, inputs, expected, dtype):
    assert_golden(function(tensor(inputs["rewards"], dtype)), expected["advantages"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "expected"), baseline("opo"))
def test_opo(inputs, expected, dtype):
    advantages = opo_advantage(tensor(inputs["rewards"], dtype), tensor(inputs["lengths"], dtype))
    assert_golden(advantages, expected["advantages"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "expected"), baseline("reinforce_plus_plus_baseline"))
def test_reinforce_pp_baseline(inputs, expected, dtype):
    advantages = reinforce_pp_baseline_advantage(tensor(inputs["rewards"], dtype), tensor(inputs["lengths"], dtype))
    lengths = torch.tensor(inputs["lengths"]).flatten()
    on_tokens = tensor(expected["advantages_tokens"])
    written = torch.arange(on_tokens.shape[1]) < lengths.unsqueeze(1)
    assert_golden(advantages.flatten().repeat_interleave(lengths), on_tokens[written].tolist())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "expected"), by_name(cases("a_grae", method="a_grae")))
def test_a_grae(inputs, expected, dtype):
    rewards = tensor(inputs["rewards"], dtype)
    options = {"scale": inputs["norm_by_std"], "eps": inputs["epsilon"], "form": "released"}
    advantages = a_grae_advantage(rewards, **options)
    assert_golden(advantages, expected["advantages"])


@pytest.mark.parametrize(("inputs", "expected"), by_name(cases("a_grae", method="grpo_control")))
def test_a_grae_without_weighting_is_its_base(inputs, expected):
    rewards = tensor(inputs["rewards"])
    base = grpo_advantage(rewards, eps=inputs["epsilon"]) if inputs["norm_by_std"] else dr_grpo_advantage(rewards)
    assert_golden(base, expected["advantages"])


REINFORCE = {"psr": psr_advantage, "nsr": nsr_advantage, "w_reinforce": w_reinforce_advantage}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("inputs", "expected"),
    by_name([case for case in cases("a_grae", gamma=1.0) if case["inputs"]["method"] in REINFORCE]),
)
def test_reinforce(inputs, expected, dtype):
    """Only cases without discounting: with it, the reference's advantage differs between tokens."""
    weight = {"positive_weight": inputs["positive_weight"]} if inputs["method"] == "w_reinforce" else {}
    advantages = REINFORCE[inputs["method"]](tensor(inputs["rewards"], dtype), **weight)
    assert_golden(advantages, expected["advantages"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("inputs", "expected"),
    by_name([case for case in cases("astar_po", kind="v_star") if case["inputs"]["beta1"] >= 0]),
)
def test_optimal_value(inputs, expected, dtype):
    rewards = tensor(inputs["rewards"], dtype)[:, : inputs["n_use"]]
    assert_golden(optimal_value(rewards, beta=inputs["beta1"]), expected["v_star"])

"""Rewards from the policy itself: what they read, what they add to, and how they are logged and resumed."""

import logging
import math

import pytest
import torch
from observe import completions_table, count_forwards, keep_outputs, keep_rollouts, on_outputs, scored_entropy
from peft import LoraConfig
from toy import (
    ONE_ROLLOUT,
    OPTIONS,
    assert_resumes,
    assert_same_parameters,
    logged,
    make_trainer,
    parameters,
    prompts,
    rollout_with_tool,
)
from transformers import TrainerCallback

from canon_trl import CANONConfig
from canon_trl.advantages import rloo_advantage
from canon_trl.config.policy_rewards import find_policy_rewards
from canon_trl.guards.collapse import Collapse
from canon_trl.policy_rewards import rent_reward
from canon_trl.rollout import weighted_reward

RENT = {"advantage_estimator": "dr_grpo", "policy_reward": {"rent": {"weight": 0.5}}}
ALONE = {"reward_funcs": None}
WHERE_FROM = {
    "recorded": {},
    "a pass of TRL's": {"num_iterations": 2},
    "a pass on request": {"entropy_source": "forward"},
}


def train(folder, trainer_options=None, **options):
    """A trained trainer, its rollouts, the entropies of their responses by an independent pass, and the advantages."""
    trainer = make_trainer(folder, trainer_options=trainer_options, **(RENT | {"max_steps": 1} | options))
    rollouts, advantages, entropies = keep_rollouts(trainer), [], []
    trainer.on_rollout(lambda rollout, used: advantages.append(used))

    def score(output):
        training = trainer.model.training
        entropies.append(scored_entropy(trainer, output)[0])
        trainer.model.train(training)

    on_outputs(trainer, score)
    trainer.train()
    return trainer, rollouts, entropies, advantages


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        *(("", where) for where in WHERE_FROM),
        *(("lora", where) for where in WHERE_FROM),
        *(("bf16", "recorded"), ("bf16", "a pass on request"), ("checkpointing", "a pass on request")),
    ],
)
def test_it_adds_to_the_reward_with_its_weight(tmp_path, kind, where):
    options, tolerance = dict(WHERE_FROM[where]), 2e-5
    more = {"peft_config": LoraConfig(r=2, target_modules="all-linear")} if kind == "lora" else {}
    if kind == "lora":
        options |= {"beta": 0.1}  # the same module scores the reference, with its adapters off
    elif kind == "bf16":
        options, tolerance = options | {"bf16": True}, 2e-2
    elif kind == "checkpointing":
        options |= {"gradient_checkpointing": True}
    trainer, rollouts, entropies, advantages = train(tmp_path, more, log_completions=True, **options)
    rollout, entry = rollouts[0], logged(trainer)[0]
    assert rollout.reward_names == ("accuracy", "rent") and rollout.valid.all()
    correct, certainty = rollout.rewards_per_func.unbind(-1)
    torch.testing.assert_close(certainty.flatten(), -entropies[0], atol=tolerance, rtol=0)
    torch.testing.assert_close(rollout.rewards, correct + 0.5 * certainty)
    want = rollout.rewards - rollout.rewards.mean(dim=1, keepdim=True)
    torch.testing.assert_close(advantages[0].flatten().sort().values, want.flatten().sort().values)

    assert entry["rewards/rent/mean"] == pytest.approx(certainty.mean().item(), rel=1e-5)
    assert entry["rewards/rent/std"] == pytest.approx(certainty.std().item(), rel=1e-5)
    assert entry["rewards/accuracy/mean"] == pytest.approx(correct.mean().item())
    assert entry["reward"] == pytest.approx(rollout.rewards.mean().item(), rel=1e-5)
    assert entry["rewards/rent/constant_rollouts"] == 0.0
    table = completions_table(trainer)
    assert table["rent"] == certainty.flatten().tolist()
    assert table["metric/entropy"] == pytest.approx((-certainty).flatten().tolist(), rel=1e-5)


@pytest.mark.parametrize(("where", "passes"), [("recorded", 0), ("a pass of TRL's", 1), ("a pass on request", 1)])
def test_passes_over_the_model(tmp_path, where, passes):
    trainer = make_trainer(tmp_path, **(RENT | ONE_ROLLOUT | WHERE_FROM[where]))
    calls, outputs = count_forwards(trainer), keep_outputs(trainer)
    iterations = trainer.num_iterations
    trainer.train()
    assert calls == {"with_grad": 1, "without_grad": passes}
    assert trainer.num_iterations == iterations
    # A pass on request does not change TRL's loss.
    assert ("old_per_token_logps" in outputs[0]) == (where == "a pass of TRL's")


def test_a_pass_on_request_changes_no_parameter(tmp_path):
    """With weight 0 its numbers have no effect, even with ratios over several micro-batches."""
    options = {"policy_reward": {"rent": {"weight": 0.0}}, "gradient_accumulation_steps": 2, "max_steps": 2}
    trained = [
        parameters(train(tmp_path / source, **(options | {"entropy_source": source}))[0])
        for source in ("generation", "forward")
    ]
    assert_same_parameters(*trained)


def test_without_a_reward_function(tmp_path):
    trainer, rollouts, entropies, _ = train(
        tmp_path, ALONE | {"eval_dataset": prompts(8)}, policy_reward="rent", num_generations_eval=2, max_steps=2
    )
    assert trainer.reward_func_names == ["rent"] and trainer.reward_weights.tolist() == [1.0]
    for rollout, entropy in zip(rollouts, entropies, strict=True):
        assert rollout.reward_names == ("rent",) and rollout.rewards_per_func.shape == (2, 4, 1)
        torch.testing.assert_close(rollout.rewards.flatten(), -entropy, atol=2e-5, rtol=0)
    entry = logged(trainer)[0]
    assert entry["reward"] == entry["rewards/rent/mean"] < 0
    assert [key for key in entry if key.startswith("rewards/")] == [
        *("rewards/rent/mean", "rewards/rent/std", "rewards/rent/constant_rollouts")
    ]
    before = parameters(make_trainer(tmp_path))
    assert all(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())
    trainer.evaluate()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "[rent](https://huggingface.co/papers/2505.22660)" in card and "prabhudesai2025maximizing" in card
    assert '| `rent` | `{"weight": 1.0, "empty": -7.0}` |' in card
    assert "type: accuracy" not in card, "certainty is not an accuracy"
    evaluated = trainer.state.log_history[-1]
    assert evaluated["eval_rewards/rent/mean"] == pytest.approx(-torch.cat(entropies[2:]).mean().item(), rel=1e-5)
    assert not any(name.startswith("eval_policy_reward") for name in evaluated)


def test_labels_of_weight_0_change_nothing(tmp_path):
    blind = train(tmp_path / "blind", ALONE, policy_reward="rent", max_steps=3)[0]
    watched = train(tmp_path / "watched", policy_reward="rent", reward_weights=[0.0], max_steps=3)[0]
    assert_same_parameters(parameters(watched), parameters(blind))
    for entry, other in zip(logged(watched), logged(blind), strict=True):
        assert 0 < entry["rewards/accuracy/mean"] < 1
        assert (entry["reward"], entry["grad_norm"]) == (other["reward"], other["grad_norm"])


@pytest.mark.parametrize(("name", "shows"), [("em_rl_sequence", "surprisal"), ("em_rl_token", "entropy")])
def test_em_rl_with_labels_of_weight_0(tmp_path, name, shows):
    """The paper's setting: RLOO. The log has what shows a collapse, and the labels change nothing."""
    options = {"advantage_estimator": "rloo", "policy_reward": name, "max_steps": 2}
    watched, rollouts, _, advantages = train(tmp_path / "watched", reward_weights=[0.0], **options)
    for rollout in rollouts:
        want = -rollout.metrics[shows] * rollout.lengths
        torch.testing.assert_close(rollout.rewards, want)
        assert torch.equal(rollout.rewards, rollout.rewards_per_func[..., 1])
    assert torch.equal(advantages[0], rloo_advantage(rollouts[0].rewards))
    for entry in logged(watched):
        assert entry["policy_reward/length_of_first"] > 0 < entry[f"policy_reward/{shows}_of_first"]
    blind = train(tmp_path / "blind", ALONE, **options)[0]
    assert_same_parameters(parameters(watched), parameters(blind))


def brevity(log_probs, mask, prompts, completions, answer, *, base=1.0):
    """A user's policy reward that reads everything available."""
    assert log_probs.shape == mask.shape and log_probs.shape[0] == len(prompts) == len(completions) == len(answer)
    assert all(isinstance(each, str) for each in (*prompts, *completions, *answer))
    return (log_probs * mask).sum(dim=1) - base * mask.sum(dim=1)


@pytest.mark.parametrize("spec", [brevity, {brevity: {"base": 2.0}}, [{"test_policy_rewards:brevity": {"base": 2.0}}]])
def test_a_users_own_policy_reward(tmp_path, spec):
    given = {"policy_reward": spec} if callable(spec) or brevity in spec else {}
    options = {"policy_reward": None if given else spec, "mask_truncated_completions": True}
    (rollout,) = train(tmp_path, {"rollout_func": rollout_with_tool} | given, **options)[1]
    assert rollout.reward_names == ("accuracy", "brevity")
    # Row r has 2 + r % 3 tokens of the model, each of log-probability -(r + 1), and one of a tool.
    base = 1.0 if spec is brevity else 2.0
    want = [-(row + 1 + base) * (2 + row % 3) for row in range(8)]
    assert rollout.lengths.flatten().tolist() == [2 + row % 3 for row in range(8)]
    assert rollout.rewards_per_func[..., 1].flatten().tolist() == pytest.approx(want)


def test_entropies_exclude_tool_tokens(tmp_path):
    (rollout,) = train(tmp_path, {"rollout_func": rollout_with_tool})[1]
    assert torch.equal(rollout.rewards_per_func[..., 1], -rollout.metrics["entropy"])


def test_several_with_separate_weights(tmp_path):
    def constant(mask):
        return torch.full((len(mask),), 2.0)

    trainer, rollouts, entropies, _ = train(
        tmp_path,
        {"policy_reward": ["rent", {rent_reward: {"weight": -0.25}}, {constant: {"weight": 3}}]},
        policy_reward=None,
        reward_weights=[0.5],
    )
    (rollout,) = rollouts
    assert rollout.reward_names == ("accuracy", "rent", "rent_reward", "constant")
    assert trainer.reward_weights.tolist() == [0.5, 1.0, -0.25, 3.0]
    want = 0.5 * rollout.rewards_per_func[..., 0].flatten() - 0.75 * entropies[0] + 6.0
    torch.testing.assert_close(rollout.rewards.flatten(), want, atol=2e-5, rtol=0)


class Reweigh(TrainerCallback):
    def __init__(self, weights):
        self.weights = weights

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.reward_weights = torch.tensor(self.weights)


@pytest.mark.parametrize("weights", [[0.25], [0.25, 7.0]], ids=["of the given functions", "of all"])
def test_a_callback_changes_the_weights_of_reward_functions_only(tmp_path, weights):
    reweigh = Reweigh(weights)
    trainer = make_trainer(tmp_path, trainer_options={"callbacks": [reweigh]}, **(RENT | {"max_steps": 2}))
    reweigh.trainer = trainer
    rollouts = keep_rollouts(trainer)
    trainer.train()
    for rollout, weight in zip(rollouts, (1.0, 0.25), strict=True):
        want = weighted_reward(rollout.rewards_per_func.flatten(0, 1), torch.tensor([weight, 0.5]))
        assert torch.equal(rollout.rewards.flatten(), want)


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2}], ids=["recorded", "and scored"])
def test_dynamic_sampling_takes_it_into_account(tmp_path, options):
    """With it every group has spread; at weight 0 the accuracy decides, and entropies stay with their groups."""
    options = options | {"dynamic_sampling": True, "per_device_train_batch_size": 16, "max_steps": 2}
    trainer, rollouts, _, _ = train(tmp_path / "weighed", **options)
    assert logged(trainer)[0]["dynamic_sampling/rounds"] == 1.0

    trainer, rollouts, entropies, _ = train(
        tmp_path / "watched", **(options | {"policy_reward": {"rent": {"weight": 0}}})
    )
    entries = [entry for entry in logged(trainer) if "dynamic_sampling/rounds" in entry]
    assert max(entry["dynamic_sampling/rounds"] for entry in entries) > 1, "the case needs a second round"
    for rollout, entropy in zip(rollouts, entropies, strict=True):
        torch.testing.assert_close(rollout.rewards_per_func[..., 1].flatten(), -entropy, atol=2e-5, rtol=0)


@pytest.mark.parametrize("options", [{"num_iterations": 2}, {"entropy_source": "forward"}], ids=str)
def test_a_resumed_run_ends_in_the_same_weights(tmp_path, options):
    """The logs agree too; they compare each rollout's length and entropy with those of the first."""
    whole, *_ = assert_resumes(make_trainer, tmp_path, **(RENT | options))
    for name in ("policy_reward/length_of_first", "policy_reward/entropy_of_first"):
        first, *later = [entry[name] for entry in logged(whole) if name in entry]
        assert first == 1.0 not in later


def test_collapse_gives_one_warning(caplog):
    collapse = Collapse()
    with caplog.at_level(logging.WARNING):
        assert collapse.compare({"length": 8.0, "entropy": 0.5}) == {"length": 1.0, "entropy": 1.0}
        assert collapse.compare({"length": 4.0, "entropy": 0.0625}) == {"length": 0.5, "entropy": 0.125}
        assert collapse.compare({"length": 16.0, "entropy": 5.0}) == {"length": 2.0, "entropy": 10.0}
        assert not caplog.records
        assert collapse.compare({"length": 3.0, "entropy": 0.5})["length"] == 0.375
        assert collapse.compare({"length": 2.0, "entropy": 0.04})["entropy"] == pytest.approx(0.08)
        assert collapse.compare({"length": 17.0, "entropy": 0.01})["length"] == 2.125
    shorter, surer = [record.getMessage() for record in caplog.records]
    assert shorter.startswith("[RANK 0] the mean length of the responses was 8 in the first rollout and is 3 now")
    assert surer.startswith("[RANK 0] the mean entropy of the responses was 0.5 in the first rollout and is 0.04 now")
    caplog.clear()
    collapse = Collapse()
    with caplog.at_level(logging.WARNING):
        collapse.compare({"length": 8.0})
        collapse.compare({"length": 17.0})
    assert "was 8 in the first rollout and is 17 now" in caplog.text
    assert math.isnan(Collapse().compare({"entropy": 0.0})["entropy"])


def test_the_embedded_task_collapses(tmp_path, caplog):
    """It learns certainty instead of arithmetic, by ever longer responses; one warning says so."""
    options = {"policy_reward": "rent", "reward_weights": [0.0], "max_completion_length": 32, "num_generations": 16}
    with caplog.at_level(logging.WARNING):
        trainer = train(tmp_path, **options, per_device_train_batch_size=32, max_steps=14)[0]
    first, last = logged(trainer)[0], logged(trainer)[-1]
    assert last["rewards/rent/mean"] > 0.6 * first["rewards/rent/mean"]
    assert last["rewards/accuracy/mean"] < 0.5 * first["rewards/accuracy/mean"]
    assert last["policy_reward/length_of_first"] > 2
    assert last["policy_reward/entropy_of_first"] == pytest.approx(
        last["rewards/rent/mean"] / first["rewards/rent/mean"], rel=1e-5
    )
    messages = [record.getMessage() for record in caplog.records if record.name == "canon_trl.guards.collapse"]
    assert ["mean length" in message for message in messages] == [True]


def one_number(mask):
    return torch.ones(1)


def infinite(mask):
    return torch.full((len(mask),), math.inf)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (one_number, "reward function 'one_number' returned 1 rewards for 8 completions"),
        (infinite, "reward function 'infinite' returned inf for completion 0"),
    ],
)
def test_policy_reward_results_are_checked(tmp_path, function, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, {"policy_reward": function}, policy_reward=None)


def reads_the_weather(entropies, weather):
    return entropies.sum(dim=1)


def weighs(mask, *, weight=1.0):
    return weight * mask.sum(dim=1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rant", r"policy_reward='rant' is unknown \(did you mean 'rent'\?\); choose one of \[.*'rent', .*\]"),
        ("math:no", "policy_reward='math:no' cannot be imported"),
        ("math:pi", "policy_reward='math:pi' is a float, not a function"),
        (7, "policy_reward=7 is unknown"),
        ({"rent": {"emty": -1.0}}, r"policy_reward 'rent': takes no option 'emty' \(did you mean 'empty'\?\)"),
        ({"rent": {"empty": 1.0}}, r"policy_reward 'rent': empty=1.0 must lie in \(-inf, 0\]"),
        ({"rent": {"weight": "high"}}, "policy_reward 'rent': weight='high' must be a number"),
        ({"rent": {"weight": math.nan}}, r"policy_reward 'rent': weight=nan must lie in \[-1e6, 1e6\]"),
        (["rent", {"rent": {}}], r"policy_reward lists \['rent'\] more than once"),
        ({"rent": 0.5}, "policy_reward: the options of 'rent' are 0.5; they must be a mapping by name"),
        ({"test_policy_rewards:weighs": {"weight": 2.0}}, "has an option named weight, which means its weight"),
        (lambda mask: mask, "policy_reward=<function <lambda>.* cannot be imported as"),
        ("{'rent'", "policy_reward=\"{'rent'\" is not JSON"),
    ],
)
def test_an_invalid_choice_is_rejected_before_a_model_is_loaded(spec, message):
    with pytest.raises(ValueError, match=message):
        CANONConfig("out", policy_reward=spec, **OPTIONS)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (
            {"policy_reward": reads_the_weather},
            {},
            r"reads_the_weather reads \['weather'\], which is not available; available: \['answer', 'answer_ids', "
            "'completion_ids', 'completions', 'entropies', 'group_answer_ids', 'log_extra', 'log_metric', 'log_probs'",
        ),
        (
            {"policy_reward": "rent"},
            {"policy_reward": "rent"},
            "policy_reward is given to the trainer and as args.policy_reward='rent'; set only one",
        ),
        (
            {"policy_reward": "rent", "rollout_func": rollout_with_tool},
            {"dynamic_sampling": True},
            r"dynamic_sampling=True with a policy_reward that reads \['entropies'\]: it chooses groups by their",
        ),
        (
            {"policy_reward": "rent"},
            {"dynamic_sampling": True, "entropy_source": "forward"},
            "a rollout_func or entropy_source='forward'",
        ),
        (
            ALONE | {"policy_reward": "rent"},
            {"reward_weights": [1.0]},
            r"reward_weights=\[1.0\] would be ignored: there are no reward functions",
        ),
        (
            ALONE | {"policy_reward": "rent"},
            {"canon_mu_schedule": "inter_to_intra"},
            "the mu schedule reads the accuracy, which no reward function measures",
        ),
        (
            ALONE | {"policy_reward": "rent"},
            {"accuracy_reward": "accuracy"},
            r"accuracy_reward='accuracy' must be one of the reward functions \[\]",
        ),
        (
            {"policy_reward": "rent"},
            {"advantage_estimator": "psr"},
            r"policy_reward='rent' can be any number, but advantage_estimator='psr' is defined for rewards in {0, 1}",
        ),
    ],
)
def test_a_combination_is_rejected_before_a_model_is_loaded(tmp_path, given, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, trainer_options=given, model="no/such-model", **options)


@pytest.mark.parametrize(
    "spec", [{"rent": {"weight": 0}}, brevity, "majority_vote"], ids=["weight 0", "function", "name"]
)
def test_the_config_accepts_it_for_rewards_of_0_and_1(spec):
    """Without a weight, or if its rewards may be 0 and 1."""
    CANONConfig("out", policy_reward=spec, advantage_estimator="psr", **OPTIONS)


def test_entropy_source_applies_to_it(tmp_path):
    make_trainer(tmp_path, canon_metric="length", entropy_source="forward", policy_reward="rent")
    with pytest.raises(ValueError, match="entropy_source='forward' would be ignored: none of the metrics"):
        make_trainer(tmp_path, canon_metric="length", entropy_source="forward")


def test_forms_of_the_field():
    (plain,) = find_policy_rewards("rent")
    (weighed,) = find_policy_rewards({"rent": {"weight": 2, "empty": -5.0}})
    assert (plain.name, plain.weight, plain.method.options) == ("rent", 1.0, {})
    assert (weighed.name, weighed.weight, weighed.method.options) == ("rent", 2.0, {"empty": -5.0})
    several = find_policy_rewards({"rent": None, "test_policy_rewards:brevity": {"base": 0.0}})
    assert [reward.name for reward in several] == ["rent", "brevity"]
    assert find_policy_rewards(None) == find_policy_rewards({}) == find_policy_rewards([]) == ()
    config = CANONConfig("out", policy_reward=[{brevity: {"weight": 0.5}}, "rent"], **OPTIONS)
    assert config.policy_reward == [{"test_policy_rewards:brevity": {"weight": 0.5}}, "rent"]
    flag = '{"rent": {"weight": 0.5}}'
    assert CANONConfig("out", policy_reward=flag, **OPTIONS).make_policy_rewards()[0].weight == 0.5

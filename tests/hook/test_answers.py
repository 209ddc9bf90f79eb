"""Policy rewards that compare the answers of a group: what they get, what is logged, and what is rejected."""

import logging

import pytest
import torch
from observe import completions_table, count_forwards, keep_rollouts
from toy import ONE_ROLLOUT, OPTIONS, assert_resumes, assert_same_parameters, logged, make_trainer, parameters, prompts

from canon_trl import CANONConfig
from canon_trl.guards.collapse import Collapse
from canon_trl.policy_rewards.answers import NO_ANSWER, agreement, answer_id, boxed_or_number
from canon_trl.tasks.arithmetic import answer_of

VOTES = {"advantage_estimator": "dr_grpo", "policy_reward": "self_consistency"}
WATCHED = VOTES | {"reward_weights": [0.0]}
AGREEMENT = ("answered", "majority_share", "one_answer_share")


def train(folder, trainer_options=None, **options):
    trainer = make_trainer(folder, trainer_options=trainer_options, **({"max_steps": 1} | options))
    rollouts = keep_rollouts(trainer)
    trainer.train()
    return trainer, rollouts


def shares(answers):
    """The share of each group of four that has the same answer; 0 without one."""
    groups = [answers[first : first + 4] for first in range(0, len(answers), 4)]
    return [group.count(answer) / 4 if answer else 0.0 for group in groups for answer in group]


@pytest.mark.parametrize(
    "extract",
    [None, answer_of, "canon_trl.tasks.arithmetic:answer_of"],
    ids=["default", "function", "import path"],
)
def test_responses_are_rewarded_for_the_share_with_their_answer(tmp_path, extract):
    given = {"answer_extractor": extract} if callable(extract) else {}
    options = WATCHED | {"answer_extractor": None if given else extract, "log_completions": True}
    trainer, (rollout,) = train(tmp_path, given, **options)
    table = completions_table(trainer)
    answers = [(answer_of if extract else boxed_or_number)(text) for text in table["completion"]]
    assert len(set(shares(answers))) > 1, "the case needs answers of different frequency"
    assert table["self_consistency"] == shares(answers)
    assert rollout.rewards.flatten().tolist() == shares(answers)
    ids = torch.tensor([[answer_id(answer) for answer in answers[:4]], [answer_id(answer) for answer in answers[4:]]])
    entry = logged(trainer)[0]
    for name, number in agreement(ids).items():
        assert entry[f"policy_reward/{name}"] == pytest.approx(float(number))
    assert entry["policy_reward/length_of_first"] == 1.0
    assert entry["rewards/self_consistency/mean"] == pytest.approx(sum(shares(answers)) / 8)


@pytest.mark.parametrize("name", ["self_consistency", "majority_vote"])
def test_labels_of_weight_0_change_nothing(tmp_path, name):
    blind, _ = train(tmp_path / "blind", {"reward_funcs": None}, **(VOTES | {"policy_reward": name, "max_steps": 3}))
    watched, _ = train(tmp_path / "watched", **(WATCHED | {"policy_reward": name, "max_steps": 3}))
    assert_same_parameters(parameters(watched), parameters(blind))
    assert any(not torch.equal(mine, base) for mine, base in zip(*weights_before_and_after(watched), strict=True))
    for entry, other in zip(logged(watched), logged(blind), strict=True):
        assert 0 < entry["rewards/accuracy/mean"] < 1
        assert (entry["reward"], entry["grad_norm"]) == (other["reward"], other["grad_norm"])


def weights_before_and_after(trainer):
    return parameters(make_trainer(trainer.args.output_dir)).values(), parameters(trainer).values()


def test_it_needs_no_pass_over_the_model(tmp_path):
    trainer = make_trainer(tmp_path, **(WATCHED | ONE_ROLLOUT))
    calls = count_forwards(trainer)
    trainer.train()
    assert calls == {"with_grad": 1, "without_grad": 0}


def test_a_vote_replaces_a_label_for_estimators_of_right_and_wrong(tmp_path):
    options = WATCHED | {"policy_reward": "majority_vote", "advantage_estimator": "gtpo"}
    _, (rollout,) = train(tmp_path, **options)
    assert set(rollout.rewards.flatten().tolist()) == {0.0, 1.0}


def test_groups_under_dynamic_sampling(tmp_path):
    """Groups that agree have no spread and are replaced; the log is about all responses that were sampled."""
    options = {"dynamic_sampling": True, "per_device_train_batch_size": 16, "log_completions": True}
    sampled = []

    def extract(text):
        sampled.append(boxed_or_number(text))
        return sampled[-1]

    trainer, (rollout,) = train(tmp_path, {"answer_extractor": extract}, **(WATCHED | options))
    entry = logged(trainer)[0]
    assert entry["dynamic_sampling/rounds"] > 1, "the case needs a second round"
    table = completions_table(trainer)
    assert rollout.rewards.flatten().tolist() == shares([boxed_or_number(text) for text in table["completion"]])
    ids = torch.tensor([answer_id(answer) for answer in sampled]).view(-1, 4)
    assert len(ids) > 4, "the rollout has four groups"
    for name, number in agreement(ids).items():
        assert entry[f"policy_reward/{name}"] == pytest.approx(float(number))


def test_in_evaluation_a_group_may_be_of_one(tmp_path):
    trainer, rollouts = train(
        tmp_path, {"eval_dataset": prompts(8)}, **(WATCHED | {"num_generations_eval": 1, "max_steps": 1})
    )
    rollouts.clear()
    trainer.evaluate()
    (rollout,) = rollouts
    assert rollout.rewards.shape == (8, 1) and set(rollout.rewards.flatten().tolist()) <= {0.0, 1.0}
    evaluated = trainer.state.log_history[-1]
    assert not any(name.startswith("eval_policy_reward") for name in evaluated)
    trainer.train()
    assert [entry["policy_reward/answered"] for entry in logged(trainer)], "evaluation leaves nothing to log"


def agrees_with_the_first(answer_ids, group_answer_ids, prompts, mask, *, bonus=1.0):
    """A user's policy reward that compares answers."""
    assert answer_ids.shape == (len(prompts),) and group_answer_ids.shape == (len(prompts), 4)
    assert (group_answer_ids == answer_ids.unsqueeze(1)).any(dim=1).all() and len(mask) == len(prompts)
    return bonus * ((group_answer_ids[:, 0] == answer_ids) & (answer_ids != NO_ANSWER)).float()


def test_a_users_own_policy_reward(tmp_path):
    spec = {agrees_with_the_first: {"bonus": 2.0}}
    (rollout,) = train(tmp_path, {"policy_reward": spec}, advantage_estimator="dr_grpo", reward_weights=[0.0])[1]
    assert rollout.reward_names == ("accuracy", "agrees_with_the_first")
    assert (rollout.rewards[:, 0] == 2.0).all()


def test_a_resumed_run_ends_in_the_same_weights(tmp_path):
    """The logs agree too: they compare with the answers of the first rollout."""
    whole, *_ = assert_resumes(make_trainer, tmp_path, **WATCHED)
    assert all(f"policy_reward/{name}" in entry for entry in logged(whole) for name in AGREEMENT)


def test_the_model_card_names_it(tmp_path):
    trainer, _ = train(tmp_path, **(WATCHED | {"answer_extractor": "canon_trl.tasks.arithmetic:answer_of"}))
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "[self_consistency](https://huggingface.co/papers/2505.15134)" in card
    assert '| `self_consistency` | `{"weight": 1.0, "answer_extractor": "answer_of"}` |' in card


def test_one_answer_to_most_prompts_gives_one_warning(caplog):
    collapse = Collapse()
    with caplog.at_level(logging.WARNING):
        collapse.compare({"length": 8.0})
        for share in (0.2, 0.4, 0.5):
            collapse.watch_answers({"one_answer_share": share, "majority_share": 1.0})
        collapse.watch_answers({})
        assert not caplog.records
        for share in (0.51, 0.9):
            collapse.watch_answers({"one_answer_share": share})
        collapse.compare({"length": 8.0})
    (record,) = caplog.records
    assert "51% of the responses give the same answer, whatever the prompt, and 20% did in the" in record.getMessage()
    caplog.clear()
    collapse = Collapse()
    with caplog.at_level(logging.WARNING):
        for share in (0.45, 0.85):  # such as yes or no
            collapse.watch_answers({"one_answer_share": share})
    assert not caplog.records


def fails(text):
    raise ZeroDivisionError("the answer has no end")


def counts(text):
    return len(text)


@pytest.mark.parametrize(
    ("extract", "error", "message"),
    [
        (fails, ZeroDivisionError, "the answer has no end"),
        (counts, TypeError, r"answer_extractor returned \d+ for completion 0; it must return text or None"),
    ],
)
def test_what_an_extractor_raises_or_returns_is_checked(tmp_path, extract, error, message):
    with pytest.raises(error, match=message) as raised:
        train(tmp_path, {"answer_extractor": extract}, **VOTES)
    assert "in the answer_extractor" in raised.value.__notes__


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            {"answer_extractor": "boxd_or_number"},
            r"'boxd_or_number' is unknown \(did you mean 'boxed_or_number'\?\)",
        ),
        ({"answer_extractor": "math:no"}, "answer_extractor='math:no' cannot be imported"),
        ({"answer_extractor": "math:pi"}, "answer_extractor='math:pi' is a float, not a function"),
        ({"answer_extractor": lambda text: text}, "answer_extractor=<function <lambda>.* cannot be imported as"),
    ],
)
def test_an_unknown_extractor_is_rejected_before_a_model_is_loaded(options, error):
    with pytest.raises(ValueError, match=error):
        CANONConfig("out", **(OPTIONS | VOTES | options))


def test_an_extractor_that_nothing_reads_is_rejected(tmp_path):
    message = "answer_extractor='boxed_or_number' would be ignored: no policy reward reads answer_ids or"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, model="no/such-model", policy_reward="rent", answer_extractor="boxed_or_number")
    with pytest.raises(ValueError, match=r"answer_extractor is given to the trainer and as args\.answer_"):
        given = {"answer_extractor": answer_of}
        make_trainer(tmp_path, model="no/such-model", trainer_options=given, **VOTES, answer_extractor="math_verify")

"""Values per token in a rollout, for estimators that read them: where they come from, and GTPO, which reads them."""

import pytest
import torch
from observe import count_forwards, keep_outputs, keep_rollouts, on_outputs
from toy import (
    ONE_ROLLOUT,
    assert_resumes,
    assert_same_parameters,
    logged,
    make_trainer,
    parameters,
    rollout_with_tool,
)

from canon_trl.advantages import dr_grpo_advantage, gtpo_advantage

GTPO = {"advantage_estimator": "gtpo"}
WHERE_FROM = {
    "recorded": {},
    "a pass of TRL's": {"num_iterations": 2},
    "a pass on request": {"entropy_source": "forward"},
}


def token_values(trainer, output):
    """Entropies and log-probabilities of every token, by a separate pass over the full logits."""
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    width, training = output["completion_ids"].shape[1], trainer.model.training
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1].float()
    trainer.model.train(training)
    log_probs = (logits / trainer.temperature).log_softmax(-1)
    mask = output["completion_mask"].bool()
    entropies = torch.special.entr(log_probs.exp()).sum(-1)
    chosen = log_probs.gather(-1, output["completion_ids"].unsqueeze(-1)).squeeze(-1)
    return entropies.masked_fill(~mask, 0.0), chosen.masked_fill(~mask, 0.0), mask


def reads_all(rollout, entropies, log_probs, mask):
    return dr_grpo_advantage(rollout.rewards)


def train(folder, trainer_options=None, **options):
    """A trained trainer, its rollouts, the advantages used, and the values of an independent pass."""
    trainer = make_trainer(folder, trainer_options=trainer_options, **({"max_steps": 1} | options))
    rollouts, passes, outputs = keep_rollouts(trainer), [], keep_outputs(trainer)
    on_outputs(trainer, lambda output: passes.append(token_values(trainer, output)))
    trainer.train()
    return trainer, rollouts, [output["advantages"] for output in outputs], passes


@pytest.mark.parametrize("where", WHERE_FROM)
def test_an_estimator_reads_the_values_that_its_parameters_name(tmp_path, where):
    _, (rollout,), _, (passed,) = train(tmp_path, {"advantage_estimator": reads_all}, **WHERE_FROM[where])
    assert rollout.mask.dtype == torch.bool and rollout.mask.shape == (2, 4, rollout.width)
    assert torch.equal(rollout.mask.sum(dim=-1), rollout.lengths)
    for name, want in zip(("entropies", "log_probs", "mask"), passed, strict=True):
        got = getattr(rollout, name)
        torch.testing.assert_close(got.flatten(0, 1), want, atol=2e-5, rtol=0)
        assert (got[~rollout.mask] == 0).all()


@pytest.mark.parametrize(("where", "passes"), [("recorded", 0), ("a pass of TRL's", 1), ("a pass on request", 1)])
def test_passes_over_the_model(tmp_path, where, passes):
    trainer = make_trainer(tmp_path, **(GTPO | ONE_ROLLOUT | WHERE_FROM[where]))
    calls = count_forwards(trainer)
    trainer.train()
    assert calls == {"with_grad": 1, "without_grad": passes}


def test_nothing_is_gathered_for_other_estimators(tmp_path):
    trainer, (rollout,), _, _ = train(tmp_path / "without", advantage_estimator="dr_grpo")
    assert rollout.token_values == {}
    with pytest.raises(KeyError, match=r"'entropies' was not gathered for this rollout.*Add a positional"):
        rollout.entropies  # noqa: B018  # raises
    reading = train(tmp_path / "with", {"advantage_estimator": reads_all})[0]
    assert_same_parameters(parameters(reading), parameters(trainer))


def test_gtpo_uses_the_entropies_of_the_rollout(tmp_path):
    trainer, rollouts, advantages, passes = train(tmp_path, max_steps=2, **GTPO)
    for rollout, used, (entropies, _, mask) in zip(rollouts, advantages, passes, strict=True):
        want = gtpo_advantage(rollout.rewards, rollout.entropies, rollout.mask).flatten(0, 1)
        assert torch.equal(used, want)
        independent = gtpo_advantage(
            rollout.rewards, entropies.view_as(rollout.entropies), mask.view_as(rollout.mask)
        ).flatten(0, 1)
        torch.testing.assert_close(used, independent, atol=1e-3, rtol=1e-3)
    assert any((used.amax(dim=1) != used.amin(dim=1)).any() for used in advantages), "one value per response"
    assert all(entry["grad_norm"] > 0 for entry in logged(trainer))


def test_gtpo_leaves_out_the_tokens_of_tools(tmp_path):
    (rollout,), (used,) = train(tmp_path, {"rollout_func": rollout_with_tool}, **GTPO, reward_weights=[1.0])[1:3]
    lengths = [2 + row % 3 for row in range(8)]
    assert rollout.mask.sum(dim=-1).flatten().tolist() == lengths
    for row, length in enumerate(lengths):
        assert rollout.mask.flatten(0, 1)[row].tolist()[: length + 1] == [True] * (length - 1) + [False, True]
    assert (used[~rollout.mask.flatten(0, 1)] == 0).all()
    assert (rollout.entropies[~rollout.mask] == 0).all()


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2}], ids=["recorded", "scored"])
def test_values_stay_with_their_groups_under_dynamic_sampling(tmp_path, options):
    options = options | {"dynamic_sampling": True, "per_device_train_batch_size": 16, "max_steps": 2}
    trainer, rollouts, _, passes = train(tmp_path, **GTPO, **options)
    entries = [entry for entry in logged(trainer) if "dynamic_sampling/rounds" in entry]
    assert max(entry["dynamic_sampling/rounds"] for entry in entries) > 1, "the case needs a second round"
    for rollout, (entropies, _, mask) in zip(rollouts, passes, strict=True):
        assert torch.equal(rollout.mask.flatten(0, 1), mask)
        torch.testing.assert_close(rollout.entropies.flatten(0, 1), entropies, atol=2e-5, rtol=0)


def test_a_mix_reads_what_its_estimators_read(tmp_path):
    mixed = {"mix": {"gtpo": {"weight": 0.5, "entropy_weight": 0.3}, "dr_grpo": 2.0}}
    _, (rollout,), (used,), _ = train(tmp_path, advantage_estimator=mixed)
    want = 0.5 * gtpo_advantage(rollout.rewards, rollout.entropies, rollout.mask, entropy_weight=0.3)
    want = want + 2.0 * dr_grpo_advantage(rollout.rewards).unsqueeze(-1)
    mask = rollout.mask.flatten(0, 1)
    torch.testing.assert_close(used[mask], want.flatten(0, 1)[mask])


def test_a_resumed_run_ends_in_the_same_weights(tmp_path):
    assert_resumes(make_trainer, tmp_path, **GTPO, num_iterations=2)


def test_entropy_source_applies_to_it(tmp_path):
    make_trainer(tmp_path, advantage_estimator="gtpo", entropy_source="forward")
    with pytest.raises(ValueError, match="entropy_source='forward' would be ignored: none of the metrics"):
        make_trainer(tmp_path, advantage_estimator="dr_grpo", entropy_source="forward")
    tools = {"rollout_func": rollout_with_tool}
    with pytest.raises(ValueError, match="entropy_source='generation' does not work with rollout_func"):
        make_trainer(tmp_path, trainer_options=tools, entropy_source="generation", **GTPO)


def test_rewards_other_than_0_and_1_are_rejected(tmp_path):
    def halves(completions, **kwargs):
        return [0.5] * len(completions)

    with pytest.raises(ValueError, match=r"advantage_estimator='gtpo' is defined for rewards in \{0, 1\}"):
        train(tmp_path, {"reward_funcs": halves}, **GTPO)

"""Token advantages and loss terms in TRL's loss: what they read, how they are divided, and what is rejected."""

import pytest
import torch
from toy import (
    OPTIONS,
    assert_resumes,
    assert_same_but_for_rounding,
    assert_same_parameters,
    length_reward,
    logged,
    make_trainer,
    parameters,
)
from trl import GRPOConfig

from canon_trl import CANONConfig, PluggableGRPOTrainer
from canon_trl.advantages import ESTIMATORS
from canon_trl.loss_terms import LOSS_TERMS, dads_weights
from canon_trl.method import Method
from canon_trl.policy_losses import Whole
from canon_trl.token_advantages import TOKEN_ADVANTAGES, TokenAdvantage
from canon_trl.trl_release import FUSED_HEAD


def make(folder, token_advantage=(), loss_term=(), policy_loss=None, reward=length_reward, **options):
    stages = {"token_advantage": token_advantage, "loss_term": loss_term, "policy_loss": policy_loss}
    stages |= {"reward_funcs": reward}
    estimator = {"advantage_estimator": ESTIMATORS["dr_grpo"], "metrics": {}}
    options = {"trainer_class": PluggableGRPOTrainer, "config_class": GRPOConfig, "max_steps": 2} | options
    return make_trainer(folder, trainer_options=stages | estimator, **options)


def trained(*args, **options):
    trainer = make(*args, **options)
    trainer.train()
    return trainer


def test_a_token_advantage_without_effect_changes_no_bit(tmp_path):
    plain = trained(tmp_path / "plain")
    shaped = trained(tmp_path / "shaped", [TOKEN_ADVANTAGES["entropy_shaped"].with_options({"alpha": 0.0}, where="")])
    assert_same_parameters(parameters(shaped), parameters(plain))
    assert logged(shaped)[0]["token_advantage/entropy_shaped/share_changed"] == 0
    changed = trained(tmp_path / "changed", [TOKEN_ADVANTAGES["entropy_shaped"]])
    assert logged(changed)[0]["token_advantage/entropy_shaped/share_changed"] > 0.5
    assert logged(changed)[0]["grad_norm"] != logged(plain)[0]["grad_norm"]


def test_shapes_weights_and_masks_apply_in_order(tmp_path):
    shape = TokenAdvantage("plus_one", lambda advantages: advantages + 1.0)
    weight = TokenAdvantage("doubled", lambda mask: torch.full(mask.shape, 2.0), kind="weight")
    mask = TokenAdvantage(
        "first_dropped", lambda mask: torch.arange(mask.shape[1]).expand(mask.shape) == 0, kind="mask"
    )
    trainer = make(tmp_path, [shape, weight, mask], max_steps=1)
    seen = []
    trainer.on_tokens(seen.append)
    estimated = []
    trainer.on_rollout(lambda rollout, advantages: estimated.append(advantages))
    trainer.train()
    (tokens,), (advantages,) = seen, estimated
    want = 2 * (advantages.flatten()[tokens.response] + 1).unsqueeze(1) * tokens.mask
    want[:, 0] = 0
    assert torch.equal(tokens.advantages, want)
    with pytest.raises(ValueError, match=r"shapes must come first, then weights, then masks"):
        make(tmp_path, [mask, shape])


def test_a_method_sees_the_rollout_and_the_pass_of_its_micro_batch(tmp_path):
    trainer = make(tmp_path, max_steps=2, num_iterations=2, per_device_train_batch_size=4, steps_per_generation=2)
    tokens, rollouts = [], []
    trainer.on_tokens(tokens.append)
    trainer.on_rollout(lambda rollout, advantages: rollouts.append(rollout))
    trainer.train()
    (rollout,) = rollouts
    assert sorted(torch.cat([seen.response for seen in tokens]).tolist()) == list(range(8))
    for index, seen in enumerate(tokens):
        assert torch.equal(seen.rewards, rollout.rewards.flatten()[seen.response])
        assert torch.equal(seen.group_rewards, rollout.rewards[seen.response // 4])
        assert seen.log_probs.requires_grad and seen.entropies.requires_grad == FUSED_HEAD
        assert (seen.step, seen.micro_step, seen.clip) == (index, index, (0.2, 0.2))
        assert seen.sampling_log_probs.isnan().all() and seen.ref_log_probs is None
    torch.testing.assert_close(tokens[0].log_probs, tokens[0].old_log_probs)
    assert not torch.allclose(tokens[1].log_probs[tokens[1].mask], tokens[1].old_log_probs[tokens[1].mask])


def test_a_scalar_term_is_divided_by_the_accumulation_steps(tmp_path):
    """TRL's entropy bonus as a term: a mean per micro-batch."""

    def bonus(entropies, mask):
        return -0.5 * (entropies * mask).sum() / mask.sum()

    options = {"loss_type": "grpo", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trl = trained(tmp_path / "trl", entropy_coef=0.5, **options)
    ours = trained(tmp_path / "ours", loss_term=[Method("bonus", bonus)], **options)
    for name in ("loss", "grad_norm"):
        assert [e[name] for e in logged(ours)] == pytest.approx([e[name] for e in logged(trl)], rel=1e-5)
    entry = logged(ours)[0]
    assert entry["loss_term/bonus"] < 0


def test_a_per_token_term_is_aggregated_like_the_loss(tmp_path):
    """A term of minus half the advantage times the ratio equals an advantage 1.5 times as large."""

    def half(advantages, log_probs):
        return -0.5 * advantages * (log_probs - log_probs.detach()).exp()

    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    larger = trained(tmp_path / "larger", [Method("larger", lambda advantages: 1.5 * advantages)], **options)
    term = trained(tmp_path / "term", loss_term=[Method("half", half)], **options)
    assert_same_but_for_rounding(
        {name: value.tolist() for name, value in parameters(term).items()},
        {name: value.tolist() for name, value in parameters(larger).items()},
    )


def test_terms_read_the_numbers_of_the_last_step(tmp_path):
    measured = []

    def watch(measured_now, entropies):
        measured.append(dict(measured_now))
        return 0.0 * entropies.sum()

    method = Method("watch", watch, renamed={"measured_now": "measured"})
    trainer = trained(tmp_path, loss_term=[method], max_steps=3)
    entries = logged(trainer)
    assert measured[0] == {}
    for before, seen in zip(entries, measured[1:], strict=False):
        assert seen["entropy"] == pytest.approx(before["entropy"], rel=1e-5)


def test_evaluation_reports_trls_loss(tmp_path):
    trainer = make(tmp_path, [TOKEN_ADVANTAGES["entropy_shaped"]], [LOSS_TERMS["ter"]])
    trainer.eval_dataset = trainer.train_dataset.select(range(8))
    torch.manual_seed(0)
    with_stages = trainer.evaluate()["eval_loss"]
    plain = make(tmp_path)
    plain.eval_dataset = plain.train_dataset.select(range(8))
    torch.manual_seed(0)
    assert plain.evaluate()["eval_loss"] == with_stages


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ({"loss_term": [LOSS_TERMS["ter"]]}, {"loss_type": "cispo"}, "loss_term='ter' does not work with loss_type"),
        (
            {"loss_term": [Method("near", lambda log_probs, ref_log_probs: log_probs - ref_log_probs)]},
            {},
            r"near reads ref_log_probs, but beta=0\.0 loads no reference model; set beta above 0",
        ),
        (
            {"loss_term": [LOSS_TERMS["dads"]]},
            {"beta": 0.1, "use_bias_correction_kl": True},
            "use_bias_correction_kl=True does not work with loss_term='dads'",
        ),
    ],
)
def test_incompatible_stages_are_rejected(tmp_path, stages, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **stages, **options)


def test_method_results_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"short returned shape \(8,\); it must return a tensor of shape \(8, "):
        trained(tmp_path, [Method("short", lambda rewards: rewards)])
    with pytest.raises(ValueError, match=r"policy_loss 'no_mean' returned shape \(8,\); it must return one number"):
        trained(tmp_path, policy_loss=Whole("no_mean", lambda log_probs: log_probs.sum(dim=1)))


def first_is_right(completions, **kwargs):
    return [float(row % 4 == 0) for row in range(len(completions))]


def test_dads_changes_the_weight_of_trls_kl_term(tmp_path):
    """The same as a term with the whole weighted divergence, where TRL's own has no weight."""

    def weighted(log_probs, ref_log_probs, group_rewards, response_advantages):
        log_ratio = ref_log_probs - log_probs
        weights = dads_weights(group_rewards, response_advantages.unsqueeze(1))
        return 0.5 * weights * (log_ratio.exp() - log_ratio - 1)

    options = {"reward": first_is_right, "max_steps": 4, "num_iterations": 2, "learning_rate": 1e-2}
    options |= {"use_bias_correction_kl": False}
    ours = trained(tmp_path / "ours", loss_term=[LOSS_TERMS["dads"]], beta=0.5, **options)
    whole = trained(tmp_path / "whole", loss_term=[Method("weighted", weighted)], beta=1e-30, **options)
    assert logged(ours)[-1]["loss_term/dads"] < 0
    for name in ("loss", "grad_norm"):
        want = pytest.approx([entry[name] for entry in logged(whole)], rel=1e-3, abs=1e-5)
        assert [entry[name] for entry in logged(ours)] == want


def test_whole_groups_lie_in_one_micro_batch_in_sampling_order(tmp_path):
    trainer = make(
        tmp_path,
        policy_loss="disco",
        reward=first_is_right,
        per_device_train_batch_size=8,
        steps_per_generation=4,
        num_iterations=2,
        max_steps=8,
    )
    seen = []
    trainer.on_tokens(seen.append)
    trainer.train()
    assert len(seen) == 8
    for tokens in seen:
        first = tokens.response[::4]
        assert torch.equal(tokens.response, (first.unsqueeze(1) + torch.arange(4)).flatten())
        assert (first % 4 == 0).all()
        assert torch.equal(tokens.rewards, (tokens.response % 4 == 0).float())
        assert tokens.prompt_rewards.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 2
    assert sorted(torch.cat([tokens.response for tokens in seen[:4]]).tolist()) == list(range(32))
    groups = [tuple(tokens.response[::4].tolist()) for tokens in seen[:4]]
    assert groups != [(0, 4), (8, 12), (16, 20), (24, 28)], "TRL's shuffle decides which groups go together"


@pytest.mark.parametrize("options", [{"advantage_estimator": "opo"}, {"canon_mu": 0.5}], ids=str)
def test_an_estimator_that_the_loss_ignores_is_rejected(tmp_path, options):
    with pytest.raises(ValueError, match="would be ignored: policy_loss='disco' reads no advantages"):
        CANONConfig(str(tmp_path), policy_loss="disco", **OPTIONS, **options)


def test_disco_trains_and_resumes(tmp_path):
    options = {"policy_loss": "disco", "reward": first_is_right, "num_iterations": 2, "per_device_train_batch_size": 4}
    trainers = assert_resumes(make, tmp_path, steps_per_generation=2, **options)
    assert all(entry["grad_norm"] > 0 for entry in logged(trainers[0]))


def test_a_users_own_loss_replaces_trls(tmp_path):
    """TRL's dr_grpo loss as a function gives TRL's gradient."""

    def dr_grpo(log_probs, old_log_probs, advantages, mask):
        ratio = (log_probs - old_log_probs).exp()
        return -(torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) * mask).sum() / (4 * 12)

    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "loss_type": "dr_grpo"}
    ours, trl = (trained(tmp_path / str(i), policy_loss=loss, **options) for i, loss in enumerate((dr_grpo, None)))
    for name in ("loss", "grad_norm"):
        assert [e[name] for e in logged(ours)] == pytest.approx([e[name] for e in logged(trl)], rel=1e-5)


def test_no_gradient_goes_through_a_token_advantage(tmp_path):
    trainer = make(tmp_path, [TokenAdvantage("log_probs", lambda log_probs: log_probs)], max_steps=1)
    seen = []
    trainer.on_tokens(seen.append)
    trainer.train()
    assert seen[0].log_probs.requires_grad and not seen[0].advantages.requires_grad

"""A partial rollout weighs its responses like a smaller full one."""

import logging
import math
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from observe import keep_outputs, keep_rollouts
from teaching import MIXED, fixed_responses, graded
from toy import (
    NO_MODEL,
    OPTIONS,
    TASK,
    logged,
    make_trainer,
    parameters,
    prompts,
    save_mixture_of_experts,
)
from trl import GRPOConfig

from canon_trl import CANONConfig, CANONTrainer, PluggableGRPOTrainer
from canon_trl.config.checks import check_shrink, one_rollout_per_step
from canon_trl.sampling import DynamicSampling

# The first and last rows of MIXED teach; here all but the second do.
THREE_OF_FOUR = Dataset.from_dict({"prompt": ["2+3*4=", "3+3*4=", "4-1*2=", "6-1*2="]})
DATASETS = {"MIXED": MIXED, "THREE_OF_FOUR": THREE_OF_FOUR}


def by_a_tool_too(prompts, trainer):
    """The same responses, but a tool wrote the `#`."""
    written = fixed_responses(prompts, trainer)
    masks = [[1] * (len(ids) - 2) + [0, 1] for ids in written["completion_ids"]]
    return written | {"env_mask": masks}


def one_sgd_step(folder, dataset, write, **options):
    """The parameters after a step of plain gradient descent on given responses, and what it logged."""
    trainer = make_trainer(
        folder,
        trainer_options={
            "train_dataset": dataset,
            "reward_funcs": lambda prompts, **kwargs: graded(prompts, prompts, lambda *args: None),
            "rollout_func": write,
        },
        advantage_estimator="dr_grpo",
        shuffle_dataset=False,
        optim="sgd",
        learning_rate=1.0,
        max_steps=1,
        lr_scheduler_type="constant",
        max_grad_norm=1e9,
        **options,
    )
    trainer.train()
    return parameters(trainer), logged(trainer)[0]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The parameters before the step."""
    return parameters(make_trainer(tmp_path_factory.mktemp("start")))


@pytest.fixture(scope="module")
def small_step(tmp_path_factory):
    """A step on the given rows only, run once for each set of arguments."""

    @cache
    def step(rows, size, write, loss_type):
        dataset = DATASETS[rows[0]].select(rows[1])
        folder = tmp_path_factory.mktemp("small")
        return one_sgd_step(folder, dataset, write, loss_type=loss_type, per_device_train_batch_size=size)

    return step


def assert_same_step(got, want, start):
    """Weights near 1 are rounded to 1.2e-7."""
    assert any(not torch.equal(start[name], value) for name, value in want.items())
    for name, value in want.items():
        torch.testing.assert_close(got[name] - start[name], value - start[name], atol=1e-6, rtol=1e-4)


# Two ways to leave out the groups that do not teach.
LEAVES_OUT = {
    "dynamic_sampling": {"dynamic_sampling": True, "dynamic_sampling_kwargs": {"max_rounds": 1}},
    "zero_variance": {"token_advantage": "zero_variance"},
}


@pytest.mark.parametrize("leaves_out", LEAVES_OUT)
@pytest.mark.parametrize("write", [fixed_responses, by_a_tool_too])
@pytest.mark.parametrize(
    ("loss_type", "parts"),
    # bnpo divides by the tokens of each micro-batch, which depend on the shuffle
    [("bnpo", 1), *((loss_type, parts) for loss_type in ("grpo", "dapo", "dr_grpo") for parts in (1, 2, 4))],
)
def test_a_shrunken_batch_trains_like_a_full_one_of_that_size(
    tmp_path, start, small_step, loss_type, parts, write, leaves_out
):
    """The gradient equals that of a batch of only the kept groups, whatever the loss divides by."""
    shrunken, _ = one_sgd_step(
        tmp_path,
        MIXED,
        write,
        loss_type=loss_type,
        per_device_train_batch_size=16 // parts,
        gradient_accumulation_steps=parts,
        **LEAVES_OUT[leaves_out],
    )
    small, _ = small_step(("MIXED", (0, 3)), 8, write, loss_type)
    assert_same_step(shrunken, small, start)


@pytest.mark.parametrize("leaves_out", LEAVES_OUT)
@pytest.mark.parametrize("loss_type", ["dr_grpo", "grpo"])
@pytest.mark.parametrize(("accumulated", "parts"), [(2, 1), (4, 2)])
def test_responses_of_all_rollouts_of_an_optimiser_step_weigh_the_same(
    tmp_path, start, small_step, loss_type, accumulated, parts, leaves_out
):
    """Two rollouts per step, the first half empty: 12 of 16 places are trained on, each with weight 1/12."""
    shrunken, entry = one_sgd_step(
        tmp_path,
        THREE_OF_FOUR,
        fixed_responses,
        loss_type=loss_type,
        per_device_train_batch_size=8 // parts,
        gradient_accumulation_steps=accumulated,
        steps_per_generation=parts,
        **LEAVES_OUT[leaves_out],
    )
    small, expected = small_step(("THREE_OF_FOUR", (0, 2, 3)), 12, fixed_responses, loss_type)
    assert_same_step(shrunken, small, start)
    assert entry["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    assert entry["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("a_step", "a_rollout", "iterations", "one"),
    [
        (1, 1, 1, True),
        (2, 4, 1, True),
        (2, 1, 1, False),
        (2, 1, 2, True),
        (4, 2, 2, True),
        (4, 2, 3, False),  # the second step ends in the next rollout
        (2, 3, 2, False),  # the second step takes the last part and the first one again
        (3, 2, 3, False),  # the first step takes the first part twice
    ],
)
def test_steps_that_take_one_rollout(a_step, a_rollout, iterations, one):
    names = ("gradient_accumulation_steps", "steps_per_generation", "num_iterations")
    args = SimpleNamespace(**dict(zip(names, (a_step, a_rollout, iterations), strict=True)))
    assert one_rollout_per_step(args) == one


@pytest.mark.parametrize(
    ("bonus", "message"),
    [
        ({"entropy_coef": 0.1}, "entropy_coef=0.1 and use_adaptive_entropy=False"),
        ({"use_adaptive_entropy": True}, "entropy_coef=0.0 and use_adaptive_entropy=True"),
    ],
)
def test_an_entropy_bonus_is_rejected_with_shrink(tmp_path, bonus, message):
    def make(exhausted):
        return PluggableGRPOTrainer(
            str(TASK.model_path),
            TASK.reward,
            GRPOConfig(str(tmp_path), **OPTIONS, **bonus),
            prompts(),
            advantage_estimator=lambda rollout: rollout.rewards,
            dynamic_sampling=DynamicSampling(exhausted=exhausted),
        )

    with pytest.raises(ValueError, match=rf"{message}: .* cannot skip positions; set dynamic_sampling_kwargs"):
        make("shrink")
    make("keep")


def wide_only(mask):
    """One number, but not for the example tokens."""
    if mask.shape[1] == 6:
        raise IndexError("too narrow")
    return mask.sum() * 0.0


def test_a_scalar_term_is_rejected_where_shrink_scales_gradients(tmp_path):
    """Before a model is loaded, or at the first micro-batch if the term fails on example tokens."""
    options = {"dynamic_sampling": True, "gradient_accumulation_steps": 2, "steps_per_generation": 1}
    message = "loss_term/{} is one number per micro-batch, .*; set dynamic_sampling_kwargs"
    with pytest.raises(ValueError, match=message.format("ter")):
        make_trainer(tmp_path, model=NO_MODEL, loss_term="ter", loss_type="grpo", **options)
    with pytest.raises(OSError):  # no model: nothing else is wrong
        make_trainer(tmp_path, model=NO_MODEL, loss_term="ter", loss_type="dapo", **options)
    trainer = make_trainer(tmp_path, trainer_options={"loss_term": wide_only}, loss_type="grpo", **options)
    with pytest.raises(ValueError, match=message.format("wide_only")):
        trainer.train()


def test_deepspeed_with_gradients_of_several_rollouts_is_rejected(tmp_path):
    steps = {"gradient_accumulation_steps": 2, "steps_per_generation": 1}
    config = CANONConfig(str(tmp_path), **OPTIONS | steps, dynamic_sampling=True)
    config.deepspeed_plugin = object()
    with pytest.raises(ValueError, match=r"steps=2 takes .* of steps_per_generation=1"):
        CANONTrainer(str(TASK.model_path), TASK.reward, config, prompts())
    config.loss_type = "dapo"  # divided by the tokens of each rollout
    check_shrink(config.make_dynamic_sampling(), config)


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_a_shrunken_batch(tmp_path, caplog, num_iterations):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": graded},
        dynamic_sampling=True,
        dynamic_sampling_kwargs={"max_rounds": 1},
        per_device_train_batch_size=24,
        num_iterations=num_iterations,
        max_steps=1,
    )
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    rollout, output = rollouts[0], outputs[0]
    kept = int(rollout.valid.any(dim=1).sum())
    assert f"after 1 generation rounds, {kept} of 6 groups are usable" in caplog.text
    assert 0 < kept < 6
    assert rollout.valid.all(dim=1).tolist() == [True] * kept + [False] * (6 - kept)
    # Over all drawn groups, not only the trained ones: half a group right, or 0.1 throughout.
    assert float(rollout.accuracy) == pytest.approx((0.5 * kept + 0.1 * (6 - kept)) / 6)
    assert output["trained"].tolist() == [True] * 4 * kept + [False] * 4 * (6 - kept)
    assert (output["completion_mask"].sum(dim=1) > 0).tolist() == output["trained"].tolist()
    assert int(output["num_items_in_batch"]) == int(output["completion_mask"].sum())
    assert (output["advantages"][4 * kept :] == 0).all()
    assert math.isfinite(logged(trainer)[0]["loss"])


@pytest.mark.parametrize("loss_type", ["dapo", "cispo"])
def test_zero_variance_divides_by_the_tokens_of_groups_with_spread(tmp_path, loss_type):
    """The second and third of four groups have equal rewards."""
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": graded, "train_dataset": MIXED, "rollout_func": fixed_responses},
        token_advantage="zero_variance",
        advantage_estimator="dr_grpo",
        shuffle_dataset=False,
        loss_type=loss_type,
        per_device_train_batch_size=16,
        num_iterations=2,
        max_steps=2,
        learning_rate=1e-2,
    )
    rollouts, outputs, seen = keep_rollouts(trainer), keep_outputs(trainer), []
    trainer.on_tokens(seen.append)
    trainer.train()
    (rollout,), output = rollouts, outputs[0]
    spread = (rollout.rewards.amax(dim=1) > rollout.rewards.amin(dim=1)).repeat_interleave(4)
    assert spread.tolist() == [True] * 4 + [False] * 8 + [True] * 4
    assert output["trained"].tolist() == spread.tolist()
    assert int(output["num_items_in_batch"]) == int(rollout.lengths.flatten()[spread].sum())
    tokens = seen[0]
    assert torch.equal(tokens.mask.any(dim=1), spread[tokens.response])
    per_token = tokens.advantages * (1.0 if loss_type == "dapo" else tokens.log_probs)
    want = -(per_token * tokens.mask).sum() / tokens.mask.sum()
    assert logged(trainer)[0]["loss"] == pytest.approx(want.item(), rel=1e-4)


def test_zero_variance_without_a_group_with_spread_takes_an_empty_step(tmp_path):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": lambda prompts, **kwargs: [1.0] * len(prompts)},
        token_advantage="zero_variance",
        max_steps=1,
    )
    before = parameters(trainer)
    trainer.train()
    entry = logged(trainer)[0]
    assert entry["loss"] == 0 and entry["grad_norm"] == 0
    assert all(torch.equal(value, before[name]) for name, value in parameters(trainer).items())


def test_evaluation_leaves_no_group_out(tmp_path):
    trainer = make_trainer(
        tmp_path,
        trainer_options={"reward_funcs": graded, "eval_dataset": MIXED, "rollout_func": fixed_responses},
        token_advantage="zero_variance",
    )
    outputs = keep_outputs(trainer)
    trainer.evaluate()
    assert outputs and all("trained" not in output for output in outputs)


def test_what_zero_variance_does_not_combine_with(tmp_path):
    small = OPTIONS | {"token_advantage": "zero_variance"}
    with pytest.raises(ValueError, match=r"cannot skip positions; choose no token_advantage='zero_variance'"):
        CANONConfig(str(tmp_path), **small, entropy_coef=0.1)
    several = {"gradient_accumulation_steps": 2, "steps_per_generation": 1, "loss_type": "grpo"}
    message = "loss_term/ter is one number per micro-batch, .*, or choose no token_advantage that leaves out responses"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, model=NO_MODEL, loss_term="ter", token_advantage="zero_variance", **several)


def of_equal_length(prompts, trainer):
    written = fixed_responses(prompts, trainer)
    completion_ids = trainer.processing_class([f"{index % 4}#1" for index in range(len(prompts))])["input_ids"]
    return written | {"completion_ids": completion_ids, "logprobs": [[-1.0] * len(ids) for ids in completion_ids]}


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_a_shrunken_batch_leaves_the_routing_loss_as_it_is(tmp_path, loss_type):
    """On policy with equal lengths, the advantages of a group cancel and only the routing loss remains."""
    experts = save_mixture_of_experts(tmp_path / "experts")
    trainer = make_trainer(
        tmp_path,
        model=experts,
        trainer_options={"reward_funcs": graded, "train_dataset": MIXED, "rollout_func": of_equal_length},
        dynamic_sampling=True,
        dynamic_sampling_kwargs={"max_rounds": 1},
        advantage_estimator="dr_grpo",
        loss_type=loss_type,
        per_device_train_batch_size=16,
        learning_rate=0.0,
        max_steps=1,
        router_aux_loss_coef=0.5,
    )
    trainer.train()
    entry = logged(trainer)[0]
    assert entry["dynamic_sampling/prompts_kept"] == 2 and entry["aux_loss"] > 0.5
    assert entry["loss"] == pytest.approx(0.5 * entry["aux_loss"], rel=1e-3)

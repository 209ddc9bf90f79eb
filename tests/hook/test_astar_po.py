"""A*-PO: the value and gradient of its loss, the datasets that it reads, and its trainer."""

import logging

import pytest
import torch
from datasets import Dataset, DatasetDict
from golden_cases import assert_golden, cases, tensor
from observe import keep_outputs, keep_rollouts
from peft import LoraConfig
from toy import OPTIONS, TASK, assert_resumes, logged, parameters, prompts, save_mixture_of_experts

from canon_trl import AStarPOConfig, AStarPOTrainer, CANONConfig
from canon_trl.advantages import optimal_value
from canon_trl.policy_losses import astar_po_loss
from canon_trl.sampling.optimal_values import sampled_rewards, with_optimal_values

NAN = float("nan")
LOSSES = [pytest.param(case["inputs"], case["expected"], id=case["name"]) for case in cases("astar_po", kind="loss")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("inputs", "expected"), LOSSES)
def test_loss_and_gradient(inputs, expected, dtype):
    log_probs, ref = (tensor(inputs[name], dtype) for name in ("log_probs", "ref_log_probs"))
    mask = tensor(inputs["response_mask"], dtype)
    rewards = (tensor(inputs["token_level_rewards"], dtype) * mask).sum(dim=1)
    log_probs.requires_grad_()
    loss = astar_po_loss(log_probs, ref, rewards - tensor(inputs["v_star"], dtype), mask, beta=inputs["beta2"])
    assert_golden(loss, expected["loss"])
    assert_golden(torch.autograd.grad(loss, log_probs)[0], expected["grad_log_probs"])


def test_loss_by_hand():
    # row 1: 0.5 * (0.2 + 0.4) - 1 = -0.7; row 2 has one token: 0.5 * -0.2 - (-0.5) = 0.4; mean of 0.49 and 0.16
    log_probs = torch.tensor([[-1.0, -1.0], [-1.0, NAN]])
    ref = torch.tensor([[-1.2, -1.4], [-0.8, 0.0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    loss = astar_po_loss(log_probs, ref, torch.tensor([1.0, -0.5]), mask, beta=0.5)
    assert loss.item() == pytest.approx(0.325)


# Datasets with optimal values

REWARDS = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
AS_LIST = {"prompt": ["a", "b", "c"], "rewards": REWARDS}
AS_COLUMNS = {"prompt": ["a", "b", "c"], "eval_0": [1, 0, 1], "eval_1": [0, 0, 1], "eval_note": ["x", "y", "z"]}


@pytest.mark.parametrize("columns", [AS_LIST, AS_COLUMNS], ids=["rewards", "eval_0, eval_1"])
def test_both_layouts(columns):
    dataset = Dataset.from_dict(columns)
    assert sampled_rewards(dataset).tolist() == REWARDS
    valued = with_optimal_values(dataset, beta1=0.5, filter_all_incorrect=False)
    assert valued["v_star"][:] == optimal_value(torch.tensor(REWARDS, dtype=torch.float64), beta=0.5).tolist()
    assert valued["pass_rate"][:] == [0.5, 0.0, 1.0]
    assert with_optimal_values(dataset, beta1=0.5, filter_all_incorrect=True)["prompt"][:] == ["a", "c"]
    # the values of another beta replace the earlier ones
    again = with_optimal_values(valued, beta1=0.0, filter_all_incorrect=False)
    assert again["v_star"][:] == [0.5, 0.0, 1.0]


def test_a_penalty_is_not_a_prompt_without_rewards():
    """Prompts whose rewards are all 0 have V* = 0 and are left out; penalties give another V*."""
    rewards = [[0.0, 0.0], [-1.0, 0.0], [-1.0, -1.0], [None, 0.0], [0.5, -0.5]]
    dataset = Dataset.from_dict({"prompt": list("abcde"), "rewards": rewards})
    kept = with_optimal_values(dataset, beta1=0.0, filter_all_incorrect=True)
    assert kept["prompt"][:] == list("bce")
    assert kept["v_star"][:] == [-0.5, -1.0, 0.0]


def test_unscored_responses_of_the_reference():
    dataset = Dataset.from_dict({"prompt": ["a"], "rewards": [[None, 1.0, 0.0]]})
    assert with_optimal_values(dataset, beta1=0.0, filter_all_incorrect=True)["v_star"][:] == [0.5]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["a"]}, r"train_dataset has neither a column 'rewards' nor columns 'eval_0'.*\['prompt'\]"),
        ({"prompt": ["a", "b"], "rewards": [[1.0], [1.0, 0.0]]}, "prompt 0 has 1 rewards, but others have 2"),
        ({"prompt": ["a", "b"], "rewards": [[1.0], None]}, "prompt 1 has 0 rewards, but others have 1"),
        ({"prompt": ["a", "b"], "rewards": [[1.0], [None]]}, "prompt 1 has no scored response, so it has no V"),
        ({"prompt": ["a", "b"], "rewards": [0.5, 1.0]}, "the rewards of prompt 0 are 0.5; they must be a list of fin"),
        ({"prompt": ["a", "b"], "rewards": ["1.0", "0.0"]}, "the rewards of prompt 0 are '1.0'; they must be a list"),
        ({"prompt": ["a", "b"], "rewards": [None, ["1.0"]]}, r"the rewards of prompt 1 are \['1.0'\]; they must be"),
        ({"prompt": ["a"], "rewards": [[1.0, float("inf")]]}, r"the rewards of prompt 0 are \[1.0, inf\]; they must"),
        ({"prompt": ["a"], "eval_0": ["right"]}, r"the rewards of prompt 0 are \('right',\); they must be"),
        ({"prompt": [], "rewards": []}, "train_dataset is empty"),
        ({"prompt": ["a", None], "rewards": [[0.0], [1.0]]}, "train_dataset: the prompt of row 1 is None"),
        (
            {"prompt": ["a", "b"], "rewards": [[0.0], [0.0]]},
            "solved none of its 2 prompts, so none is left",
        ),
    ],
)
def test_a_prompt_without_a_value_is_an_error_before_a_model_is_loaded(columns, message):
    config = AStarPOConfig("out", **OWN)
    with pytest.raises(ValueError, match=message):
        AStarPOTrainer("a-model-that-does-not-exist", TASK.reward, config, Dataset.from_dict(columns))


OWN = {name: value for name, value in OPTIONS.items() if name != "num_generations"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_generations": 4}, "num_generations=4 must be 1"),
        ({"beta1": -0.1}, r"beta1=-0.1 must lie in \[0, 1e6\]"),
        ({"beta2": 0.0}, r"beta2=0.0 must lie in \(0, 1e6\]"),
        ({"beta": 0.1}, "beta=0.1 is GRPO's weight of a KL term; for A.-PO, set beta2 instead"),
        ({"loss_type": "grpo", "epsilon": 0.3}, "loss_type='grpo', epsilon=0.3 would be ignored: A.-PO has its"),
        ({"per_device_train_batch_size": 1}, "per_device_train_batch_size=1 gives a batch of a single response"),
    ],
)
def test_config(options, message):
    with pytest.raises(ValueError, match=message):
        AStarPOConfig("out", **(OWN | options))


def test_astar_po_rejects_other_configs_and_datasets():
    with pytest.raises(TypeError, match="args is a CANONConfig; it must be an AStarPOConfig"):
        AStarPOTrainer("m", TASK.reward, CANONConfig("out", **OPTIONS), prompts())
    splits = DatasetDict(train=prompts_with_rewards(8), test=prompts_with_rewards(8))
    with pytest.raises(TypeError, match=r"a DatasetDict with the splits \['train', 'test'\]; it must be one of them"):
        AStarPOTrainer("m", TASK.reward, AStarPOConfig("out", **OWN), splits)
    for data in (prompts().to_iterable_dataset(), None):
        with pytest.raises(TypeError, match=r"train_dataset is a (IterableDataset|NoneType); A\*-PO needs a Dataset"):
            AStarPOTrainer("m", TASK.reward, AStarPOConfig("out", **OWN), data)


@pytest.mark.parametrize("options", [{"per_device_train_batch_size": 3}, {"gradient_accumulation_steps": 3}], ids=str)
def test_batches_of_odd_sizes(options):
    assert AStarPOConfig("out", **(OWN | {"per_device_train_batch_size": 1} | options)).num_generations == 1


# Training


def prompts_with_rewards(size=64):
    """Prompts with rewards of four responses each, all of them solved at least once."""
    data = prompts(size)
    return data.add_column("rewards", [[1.0] + [float(row % step == 0) for step in (2, 3, 5)] for row in range(size)])


def make(folder, trainer_options=None, **options):
    arguments = {"reward_funcs": TASK.reward, "train_dataset": prompts_with_rewards()} | (trainer_options or {})
    return AStarPOTrainer(str(TASK.model_path), args=AStarPOConfig(str(folder), **(OWN | options)), **arguments)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_of_a_step(tmp_path, parts):
    """With one response per prompt, loss and gradient follow the formula on independently scored log-probabilities."""
    trainer = make(
        tmp_path,
        beta2=0.5,
        per_device_train_batch_size=8 // parts,
        gradient_accumulation_steps=parts,
        max_steps=1,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=1e9,
        lr_scheduler_type="constant",
    )
    with torch.no_grad():  # so that the policy is not the reference
        for value in trainer.model.parameters():
            value.mul_(1.1)
    rollouts = keep_rollouts(trainer)
    outputs = keep_outputs(trainer)
    before = parameters(trainer)
    policy = [value.detach().clone().requires_grad_() for value in trainer.model.parameters()]
    trainer.train()
    rollout, output = rollouts[0], outputs[0]
    assert rollout.rewards.shape == (8, 1)
    texts = trainer.processing_class.batch_decode(output["prompt_ids"], skip_special_tokens=True)
    assert len(set(texts)) == 8, "one response per prompt"
    values = dict(zip(trainer.train_dataset["prompt"], trainer.train_dataset["v_star"], strict=True))
    want = rollout.rewards.flatten() - torch.tensor([values[text] for text in texts])
    torch.testing.assert_close(output["advantages"], want)

    names = [name for name, _ in trainer.model.named_parameters()]
    log_probs = scored(trainer.model, dict(zip(names, policy, strict=True)), output)
    ref = scored(trainer.ref_model, dict(trainer.ref_model.named_parameters()), output).detach()
    loss = astar_po_loss(log_probs, ref, want, output["completion_mask"], beta=0.5)
    assert logged(trainer)[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    gradients = torch.autograd.grad(loss, policy)
    for name, gradient in zip(names, gradients, strict=True):
        moved = trainer.model.get_parameter(name).detach() - before[name]
        torch.testing.assert_close(moved, -0.1 * gradient, atol=2e-6, rtol=1e-3)
    entry = logged(trainer)[0]
    assert entry["astar_po/advantage"] == pytest.approx(want.mean().item(), abs=1e-6)
    assert entry["astar_po/advantage_rms"] == pytest.approx(want.pow(2).mean().sqrt().item(), abs=1e-6)
    assert entry["kl"] > 0


def scored(model, weights, output):
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    width = output["completion_ids"].shape[1]
    logits = torch.func.functional_call(model, weights, kwargs={"input_ids": ids, "attention_mask": attention}).logits
    log_probs = logits[:, -width - 1 : -1].log_softmax(-1)
    return log_probs.gather(-1, output["completion_ids"].unsqueeze(-1)).squeeze(-1)


def test_responses_without_a_reward_teach_nothing(tmp_path):
    def sometimes(prompts, **kwargs):
        return [None if index % 2 else 1.0 for index, _ in enumerate(prompts)]

    trainer = make(tmp_path, trainer_options={"reward_funcs": sometimes}, max_steps=1)
    outputs = keep_outputs(trainer)
    trainer.train()
    assert (outputs[0]["completion_mask"].sum(dim=1) > 0).tolist() == [True, False] * 4
    assert outputs[0]["advantages"][1::2].tolist() == [0.0] * 4


def test_prompts_that_were_never_solved_are_left_out(tmp_path):
    data = prompts(16).add_column("rewards", [[float(row % 2), 0.0] for row in range(16)])
    kept = make(tmp_path, trainer_options={"train_dataset": data}).train_dataset
    assert kept["prompt"][:] == data["prompt"][1::2]
    every = make(tmp_path, trainer_options={"train_dataset": data}, filter_all_incorrect=False)
    assert len(every.train_dataset) == 16


def test_lora_takes_the_model_without_adapters_as_reference(tmp_path):
    peft_config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    trainer = make(tmp_path, trainer_options={"peft_config": peft_config}, max_steps=1)
    outputs = keep_outputs(trainer)
    before = parameters(trainer)
    trainer.train()
    assert trainer.ref_model is None
    base = make(tmp_path).model
    got, mask = outputs[0]["ref_per_token_logps"], outputs[0]["completion_mask"]
    want = scored(base, dict(base.named_parameters()), outputs[0])
    torch.testing.assert_close(got * mask, want.detach() * mask, atol=2e-5, rtol=0)
    for name, value in parameters(trainer).items():
        assert torch.equal(value, before[name]) == ("lora_" not in name), name


def test_a_mixture_of_experts_keeps_its_routing_loss(tmp_path):
    experts = save_mixture_of_experts(tmp_path / "experts")
    config = AStarPOConfig(
        str(tmp_path), **(OWN | {"max_steps": 1, "learning_rate": 0.0, "router_aux_loss_coef": 0.5})
    )
    trainer = AStarPOTrainer(str(experts), TASK.reward, config, prompts_with_rewards())
    outputs = keep_outputs(trainer)
    trainer.train()
    entry = logged(trainer)[0]
    regression = outputs[0]["advantages"].pow(2).mean().item()  # the policy still equals the reference
    assert entry["aux_loss"] > 0.5
    assert entry["loss"] == pytest.approx(regression + trainer.router_aux_loss_coef * entry["aux_loss"], rel=1e-4)
    assert trainer.router_aux_loss_coef == 0.5


def test_evaluation(tmp_path):
    trainer = make(tmp_path, trainer_options={"eval_dataset": prompts_with_rewards(16)})
    scores = trainer.evaluate()
    assert scores["eval_astar_po/v_star"] > 0
    assert scores["eval_loss"] == pytest.approx(scores["eval_astar_po/advantage_rms"] ** 2, rel=0.05)
    with pytest.raises(ValueError, match="eval_dataset has neither a column 'rewards'"):
        make(tmp_path, trainer_options={"eval_dataset": prompts(8)})


def test_several_evaluation_sets(tmp_path):
    sets = {"first": prompts_with_rewards(16), "second": prompts_with_rewards(8)}
    scores = make(tmp_path, trainer_options={"eval_dataset": sets}).evaluate()
    assert scores.keys() >= {"eval_first_loss", "eval_second_loss", "eval_astar_po/v_star"}
    with pytest.raises(ValueError, match="eval_dataset 'second' has neither a column 'rewards'"):
        make(tmp_path, trainer_options={"eval_dataset": sets | {"second": prompts(8)}})


def test_resume(tmp_path):
    assert_resumes(make, tmp_path, num_iterations=2)


def test_the_model_card_cites_the_paper(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = make(tmp_path, max_steps=1)
        trainer.train()
    trainer.create_model_card(model_name="own")
    card = (tmp_path / "README.md").read_text()
    assert "2505.20686" in card and "brantley2025accelerating" in card

"""A script written for GRPOTrainer: its options and its calls work with CANONTrainer."""

from dataclasses import MISSING, fields
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from observe import completions_table
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from tool_calls import CALL, add, call_the_tool, tool_model, tool_tokenizer
from toy import (
    OPTIONS,
    TASK,
    assert_same_parameters,
    base_model,
    config,
    length_reward,
    logged,
    parameters,
    prompts,
    save_mixture_of_experts,
)
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification
from trl import GRPOConfig, GRPOTrainer

from canon_trl import AStarPOConfig, AStarPOTrainer, CANONConfig, CANONTrainer, PluggableGRPOTrainer

# TRL's GRPO with its defaults, in fields of CANONConfig.
AS_TRL = {"loss_type": "dapo", "epsilon_high": None, "scale_rewards": "group"}
AS_TRL |= {"advantage_estimator": "grpo", "advantage_estimator_kwargs": {"eps": 1e-4}}

SETTINGS = {
    "canon": (CANONConfig, {}),
    "opo": (CANONConfig, {"advantage_estimator": "opo"}),
    "clip_cov": (CANONConfig, {"policy_loss": "clip_cov"}),
    "kl_cov": (CANONConfig, {"policy_loss": "kl_cov", "num_iterations": 2}),
    "disco": (CANONConfig, {"policy_loss": "disco"}),
    "sapo": (CANONConfig, {"loss_type": "sapo"}),
    "vespo": (CANONConfig, {"loss_type": "vespo"}),
    "a loss term": (CANONConfig, {"loss_term": "ter"}),
    "a policy reward": (CANONConfig, {"policy_reward": "rent"}),
    "a controller": (CANONConfig, {"controller": "e3_temperature"}),
    "dynamic sampling": (CANONConfig, {"dynamic_sampling": True}),
    "recorded entropies": (CANONConfig, {"entropy_source": "generation"}),
    "A*-PO": (AStarPOConfig, {"num_generations": 1}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_option_with_trls_default_asks_for_nothing(setting):
    config_class, options = SETTINGS[setting]
    defaults = {option.name: option.default for option in fields(GRPOConfig) if option.init}
    given = {name: value for name, value in defaults.items() if value is not MISSING}
    made = config_class(**(given | OPTIONS | options | {"output_dir": "out"}))
    assert made.scale_rewards == "group" and made.epsilon_high is None


def test_options_of_the_sampler_in_generation_kwargs():
    made = config(generation_kwargs={"do_sample": True, "top_k": 50, "num_beams": 2})
    assert (made.top_k, made.generation_kwargs) == (50, {"do_sample": True, "num_beams": 2})


@pytest.mark.parametrize("given", ["batch", "group", "none", True, False])
def test_the_estimator_follows_trls_scaling_if_none_is_chosen(given, caplog):
    chosen = {"advantage_estimator": "grpo", "advantage_estimator_kwargs": {"eps": 0.1}}
    for options, otherwise in (({}, "canon"), (chosen, "grpo"), ({"advantage_estimator": "grpo_batch"}, "grpo_batch")):
        made = config(scale_rewards=given, **options)
        want = "grpo_batch" if given == "batch" else otherwise
        assert (made.advantage_estimator, made.make_estimator().name) == (want, want)
        assert made.advantage_estimator_kwargs == options.get("advantage_estimator_kwargs", {})
    warned = "TRL's options choose advantage_estimator='grpo_batch' instead of 'canon'" in caplog.text
    assert warned == (given == "batch")


@pytest.mark.parametrize("trainer_class", [CANONTrainer, AStarPOTrainer, PluggableGRPOTrainer])
def test_methods_work_on_a_trainer_that_was_never_initialised(trainer_class):
    """As in TRL's own tests, which set the attributes of a trainer by hand."""
    trainer = object.__new__(trainer_class)
    trainer.rollout_func = lambda prompts, trainer: {"prompt_ids": [[1]], "completion_ids": [[2]]}
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, num_processes=1)
    trainer.args, trainer.state = SimpleNamespace(report_to=[]), SimpleNamespace(global_step=0)
    trainer.model, trainer.use_vllm, trainer.tools = SimpleNamespace(training=True), False, None
    with pytest.raises(ValueError, match=r"rollout_func must return keys.*logprobs"):
        trainer._generate(["1+2="])


def build(kind, folder, options, parts):
    """A trainer, TRL's or ours, with the same options; `parts` makes its other arguments."""
    options = OPTIONS | {"max_steps": 2, "num_iterations": 2} | options
    args = kind is GRPOTrainer and GRPOConfig(str(folder), **options)
    torch.manual_seed(0)
    given = {"model": str(TASK.model_path), "reward_funcs": TASK.reward, "train_dataset": prompts(32)} | parts()
    return kind(args=args or CANONConfig(str(folder), **AS_TRL | options), **given)


def assert_equal_training(folder, options, parts=dict):
    """Train both trainers; return ours."""
    trained = []
    for kind in (GRPOTrainer, CANONTrainer):
        trainer = build(kind, folder / kind.__name__, options, parts)
        before = parameters(trainer)
        torch.manual_seed(1)
        trainer.train()
        assert any(not torch.equal(value, before[name]) for name, value in parameters(trainer).items())
        trained.append(trainer)
    theirs, ours = trained
    for their_log, our_log in zip(theirs.state.log_history, ours.state.log_history, strict=True):
        different = {name for name, value in their_log.items() if our_log[name] != value}
        assert all("time" in name or "per_second" in name for name in different)
    assert_same_parameters(parameters(ours), parameters(theirs))
    return ours


OPTIONS_OF_TRL = {
    **{f"loss {name}": {"loss_type": name} for name in ("grpo", "bnpo", "cispo", "sapo", "vespo")},
    "loss luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "sequence ratios": {"importance_sampling_level": "sequence"},
    "dual clip": {"delta": 1.05},
    "an entropy bonus": {"entropy_coef": 0.1},
    "an adaptive entropy bonus": {"use_adaptive_entropy": True, "entropy_coef": 0.01},
    "an entropy filter": {"top_entropy_quantile": 0.3},
    "an off-policy mask": {"off_policy_mask_threshold": 1e-4},
    "a reference that follows": {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1},
    "an unbiased KL": {"beta": 0.1, "use_bias_correction_kl": True},
    "masked truncations": {"max_completion_length": 7, "mask_truncated_completions": True},
    "padding": {"pad_to_multiple_of": 8},
    "beams": {"generation_kwargs": {"do_sample": True, "top_k": 9, "num_beams": 2}},
    "workers": {"dataloader_num_workers": 1},
    "a head in float32": {"cast_lm_head_to_fp32": True},
}


@pytest.mark.parametrize("case", OPTIONS_OF_TRL)
def test_an_option_of_trl_trains_alike(tmp_path, case):
    assert_equal_training(tmp_path, OPTIONS_OF_TRL[case])


def lora(**options):
    return LoraConfig(r=2, target_modules=["q_proj"], **options)


PARTS = {
    "LoRA": lambda: {"peft_config": lora()},
    "DoRA": lambda: {"peft_config": lora(use_dora=True)},
    "LoRA and a whole module": lambda: {"peft_config": lora(modules_to_save=["lm_head"])},
    "IA3": lambda: {"peft_config": IA3Config(target_modules=["k_proj"], feedforward_modules=[])},
    "prompt tuning": lambda: {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)},
    "a model with an adapter": lambda: {
        "model": get_peft_model(base_model(), lora()),
        "processing_class": AutoTokenizer.from_pretrained(TASK.model_path),
    },
    "a stream": lambda: {"train_dataset": prompts(32).to_iterable_dataset()},
}


@pytest.mark.parametrize("case", PARTS)
def test_adapters_and_streams_train_alike(tmp_path, case):
    assert_equal_training(tmp_path, {"beta": 0.1}, PARTS[case])


def test_a_mixture_of_experts_with_an_adapter_trains_alike(tmp_path):
    model = str(save_mixture_of_experts(tmp_path / "experts"))
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    assert_equal_training(tmp_path, options, lambda: {"model": model, "peft_config": lora(), "reward_funcs": by_index})


def by_index(completions, **kwargs):
    return [float(index % 4) for index in range(len(completions))]


async def unique_letters(completions, **kwargs):
    return [float(len(set(completion))) for completion in completions]


def no_judgement(completions, **kwargs):
    return [None] * len(completions)


def logging_reward(completions, answer, trainer_state, log_extra, log_metric, **kwargs):
    log_extra("first letter", [completion[:1] for completion in completions])
    log_metric("answers", float(len(answer)))
    return [float(trainer_state.global_step)] * len(completions)


def test_rewards_of_every_kind_train_alike(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    judge_config = Qwen3Config(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, num_key_value_heads=1, **sizes)

    def parts():
        judge = Qwen3ForSequenceClassification(judge_config)
        functions = [judge, TASK.reward, unique_letters, no_judgement, logging_reward]
        return {"reward_funcs": functions, "reward_processing_classes": [tokenizer, *[None] * 4]}

    weights = {"reward_weights": [0.5, 1.0, 0.25, 3.0, 0.125]}
    ours = assert_equal_training(tmp_path, weights | {"log_completions": True}, parts)
    assert logged(ours)[0]["answers"] == 8.0 and "first letter" in completions_table(ours)


@pytest.mark.parametrize("generations", [1, 2])
def test_evaluation_during_training_is_alike(tmp_path, generations):
    options = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "num_generations_eval": generations}
    ours = assert_equal_training(tmp_path, options, lambda: {"eval_dataset": TASK.dataset("test", 4)})
    assert len([entry for entry in ours.state.log_history if "eval_loss" in entry]) == 3


def test_evaluation_sets_of_every_kind(tmp_path):
    data = TASK.dataset("test", 4)
    kinds = [data, data.to_iterable_dataset()]
    kinds += [{"a": part, "b": part} for part in kinds]
    kinds += [DatasetDict({"a": data}), IterableDatasetDict({"a": kinds[1]})]
    trainers = [
        build(kind, tmp_path, {"num_generations_eval": 2}, lambda: {"eval_dataset": kinds[3]})
        for kind in (GRPOTrainer, CANONTrainer)
    ]
    for given in [None, *kinds]:
        scores = []
        for trainer in trainers:
            torch.manual_seed(0)
            scores.append(trainer.evaluate(given))
        theirs, ours = scores
        timeless = {name for name in theirs if "time" not in name and "per_second" not in name}
        assert {name: ours[name] for name in timeless} == {name: theirs[name] for name in timeless}


async def slow_add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.

    Returns:
        Their sum.
    """
    return a + b


def calls(*texts):
    """A `rollout_func` whose responses are these texts in turn."""

    def respond(prompts, trainer):
        written, tokenizer = call_the_tool(prompts, trainer), trainer.processing_class
        ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        return written | {"completion_ids": [list(ids[index % len(ids)]) for index in range(len(prompts))]}

    return respond


class Adding:
    """An environment with a tool of its own, which owns the reward."""

    made = 0

    def __init__(self):
        Adding.made += 1
        self.number = Adding.made

    def reset(self, **kwargs):
        self.total = 0
        return "1+2?"

    def add(self, a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: the first.
            b: the second.

        Returns:
            Their sum.
        """
        self.total += a + b
        return self.total

    def get_reward(self):
        return float(self.total + self.number % 3)


class Idle:
    """An environment without a reward or tools."""

    def reset(self, **kwargs):
        return "wait"


CHAT = [{"role": "user", "content": "1+2?"}]
WRONG = CALL.replace('"b"', '"c"')
MALFORMED = CALL.replace('"name": "add", ', "")
LOOPS = {
    "a tool": {"tools": [add], "rollout_func": calls(CALL, "no")},
    "an asynchronous tool": {"tools": [slow_add], "rollout_func": calls(CALL.replace("add", "slow_add"), "no")},
    "failing and malformed calls": {"tools": [add], "rollout_func": calls(WRONG, CALL, MALFORMED, "no")},
    "an environment": {"environment_factory": Adding, "rollout_func": calls(CALL, WRONG, "no")},
    "an environment that owns reward and data": {
        "environment_factory": Adding,
        "rollout_func": calls(CALL, "no"),
        "reward_funcs": None,
        "train_dataset": None,
    },
    "several environments": {
        "environment_factory": {"adding": Adding, "idle": Idle},
        "rollout_func": calls(CALL, "no"),
        "train_dataset": Dataset.from_dict({"environment": ["adding", "idle"] * 4}),
    },
    "a chat": {},
}


@pytest.mark.parametrize("case", LOOPS)
def test_tools_and_environments_train_alike(tmp_path, case):
    def parts():
        Adding.made = 0
        tokenizer = tool_tokenizer()
        shared = {"train_dataset": Dataset.from_dict({"prompt": [CHAT] * 8}), "reward_funcs": by_index}
        return shared | {"model": tool_model(tokenizer), "processing_class": tokenizer} | LOOPS[case]

    options = {"max_completion_length": 160 if case != "a chat" else 12, "max_tool_calling_iterations": 1}
    ours = assert_equal_training(tmp_path, options | {"chat_template_kwargs": {"enable_thinking": False}}, parts)
    if "rollout_func" in LOOPS[case]:
        assert 0 < logged(ours)[0]["tools/call_frequency"] <= 1


REFUSED = {
    "no reward": ({}, {"reward_funcs": None}, "No reward source provided"),
    "no data": ({}, {"train_dataset": None}, "`train_dataset` is required"),
    "dispatched batches": (
        {"accelerator_config": {"dispatch_batches": True}},
        {"train_dataset": prompts(8).to_iterable_dataset()},
        "require `dispatch_batches=False`",
    ),
    "an environment without steps": (
        {"max_steps": -1},
        {"environment_factory": Idle, "train_dataset": None},
        "max_ste",
    ),
    "environments without data": ({}, {"environment_factory": {"a": Idle}, "train_dataset": None}, "`train_dataset`"),
    "an unknown environment": (
        {},
        {"environment_factory": {"a": Idle}, "train_dataset": Dataset.from_dict({"environment": ["b"] * 8})},
        "not among the environments",
    ),
    "processing classes": (
        {},
        {"reward_funcs": [length_reward, TASK.reward], "reward_processing_classes": [None]},
        "must match",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_errors_of_trl_are_its_own(tmp_path, case):
    options, parts, message = REFUSED[case]
    if "environment_factory" in parts:
        tokenizer = tool_tokenizer()
        parts = {"model": tool_model(tokenizer), "processing_class": tokenizer} | parts
    errors = []
    for kind in (GRPOTrainer, CANONTrainer):
        with pytest.raises(ValueError, match=message) as raised:
            build(kind, tmp_path, options, lambda: parts).train()
        errors.append(str(raised.value))
    assert errors[0] == errors[1]

"""`rollout_sampler`: the same training with either sampler, and what prevents sampling with a shared prefix."""

import pytest
import torch
from images import vision_processor
from observe import keep_outputs
from peft import LoraConfig, PromptTuningConfig
from toy import (
    ONE_ROLLOUT,
    TASK,
    assert_same_but_for_rounding,
    assert_same_parameters,
    base_model,
    build,
    config,
    logged,
    make_trainer,
    parameters,
    prompts,
)
from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM, Lfm2Config, Lfm2ForCausalLM

from canon_trl.evaluation import EvaluationCallback
from canon_trl.hook import shared_prefix
from canon_trl.hook.generation_recorder import GenerationRecorder, NoRecorder
from canon_trl.hook.shared_prefix import SharedPrefixSampler, sampler_obstacles
from canon_trl.sampling.samplers import TransformersSampler, cache_can_drop_rows


def trained(folder, sampler, **options):
    torch.manual_seed(0)  # adapters start at random
    trainer = make_trainer(folder, rollout_sampler=sampler, max_completion_length=40, **options)
    outputs = keep_outputs(trainer)
    trainer.train()
    kind = GenerationRecorder if sampler == "generate" else SharedPrefixSampler
    assert type(trainer._recorder()) in (kind, NoRecorder) and len(outputs) >= 1
    return trainer, [output["completion_ids"] for output in outputs]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "top_k": 8},
        {"top_p": 0.8, "min_p": 0.02, "temperature": 1.5, "canon_metric": "surprisal"},
        {"repetition_penalty": 1.3, "pad_to_multiple_of": 8, "canon_metric": "length"},
        {"dynamic_sampling": True, "eval_strategy": "steps", "eval_steps": 2},
        {"controller": "e3_temperature", "mask_truncated_completions": True},
        {"gradient_checkpointing": True},
        {"trainer_options": {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)}},
    ],
    ids=lambda options: " ".join(options),
)
def test_both_samplers_train_alike(tmp_path, options):
    """The same responses and weights; the log entries differ by rounding."""
    if "eval_strategy" in options:
        options = options | {"trainer_options": {"eval_dataset": prompts(16)}}
    shared, responses = trained(tmp_path / "shared", "shared_prefix", **options)
    plain, expected = trained(tmp_path / "plain", "generate", **options)
    assert len(responses) == len(expected) and all(map(torch.equal, responses, expected))
    assert_same_parameters(parameters(shared), parameters(plain))
    assert_same_but_for_rounding(logged(shared), logged(plain))
    evaluated = [[entry for entry in each.state.log_history if "eval_reward" in entry] for each in (shared, plain)]
    assert len(evaluated[0]) == len(evaluated[1]) == (2 if "eval_strategy" in options else 0)


def test_generate_is_restored(tmp_path):
    trainer = make_trainer(tmp_path, **ONE_ROLLOUT)
    trainer.train()
    assert isinstance(trainer._recorder(), SharedPrefixSampler) and "generate" not in vars(trainer.model)


def test_a_config_rejects_an_unknown_sampler():
    with pytest.raises(ValueError, match="rollout_sampler='vllm' must be 'auto', 'shared_prefix' or 'generate'"):
        config(rollout_sampler="vllm")


@pytest.mark.parametrize(
    ("options", "trainer_options", "obstacle"),
    [
        ({"generation_kwargs": {"min_new_tokens": 2}}, {}, "generation_kwargs"),
        ({"cache_implementation": "static"}, {}, "cache_implementation='static'"),
        ({}, {"rollout_func": print}, "rollout_func"),
        ({"torch_compile": True}, {}, "torch_compile"),
        ({"top_p": None}, {}, "top_p=None"),
        ({"top_k": None, "repetition_penalty": None}, {}, "top_k=None, repetition_penalty=None"),
        ({"use_vllm": True}, {}, "use_vllm"),
        ({"use_transformers_continuous_batching": True}, {}, "use_transformers_continuous_batching"),
    ],
    ids=str,
)
def test_an_option_in_the_way_is_named_before_a_model_is_loaded(options, trainer_options, obstacle):
    with pytest.raises(ValueError, match=f"rollout_sampler='shared_prefix' does not work with {obstacle}; set 'auto'"):
        build(trainer_options, rollout_sampler="shared_prefix", **options)


def bloom(folder):
    """A model that takes no position ids."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "n_layer": 1, "n_head": 2}
    BloomForCausalLM(BloomConfig(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_without_position_ids(tmp_path):
    folder = bloom(tmp_path / "bloom")
    with pytest.raises(ValueError, match="does not work with BloomForCausalLM, which takes no position_ids; set"):
        make_trainer(tmp_path / "out", model=folder, rollout_sampler="shared_prefix")
    trainer = make_trainer(tmp_path / "out", model=folder, **ONE_ROLLOUT)
    trainer.train()
    assert isinstance(trainer._recorder(), GenerationRecorder)


def recurrent(folder):
    """A model with a layer whose cache is a state instead of keys and values."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    Lfm2ForCausalLM(Lfm2Config(**sizes, **heads, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_cache_that_cannot_drop_rows(tmp_path):
    assert cache_can_drop_rows(base_model())
    folder = recurrent(tmp_path / "recurrent")
    with pytest.raises(ValueError, match="does not work with the cache of Lfm2ForCausalLM; set 'auto' or 'gen"):
        make_trainer(tmp_path / "out", model=folder, rollout_sampler="shared_prefix")
    trainer = make_trainer(tmp_path / "out", model=folder, **ONE_ROLLOUT)
    trainer.train()
    assert isinstance(trainer._recorder(), GenerationRecorder)


def test_obstacles_of_the_trainer(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    assert sampler_obstacles(trainer, trainer.model) == []
    trainer.is_fsdp_enabled, trainer.processing_class = True, vision_processor()
    monkeypatch.setattr(shared_prefix, "is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr(type(trainer.model), "prepare_inputs_for_generation", print)
    assert sampler_obstacles(trainer, trainer.model) == [
        *("FSDP", "DeepSpeed ZeRO-3", "a processor", "prepare_inputs_for_generation of Qwen3ForCausalLM")
    ]


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (bloom, "BloomForCausalLM takes no position_ids; sample from it with vLLM"),
        (recurrent, "the cache of Lfm2ForCausalLM cannot drop rows; sample from it with vLLM"),
    ],
    ids=["position ids", "cache"],
)
def test_a_model_that_evaluation_cannot_sample_from(tmp_path, save, message):
    trainer = make_trainer(tmp_path / "out", model=save(tmp_path / "model"))
    with pytest.raises(TypeError, match=message):
        TransformersSampler(trainer.model, trainer.processing_class, num_samples=2, max_new_tokens=4)
    with pytest.raises(TypeError, match=message):
        EvaluationCallback(trainer, prompts(4), TASK.reward)


def test_a_setting_of_the_model(tmp_path):
    trainer = make_trainer(tmp_path, rollout_sampler="shared_prefix")
    settings = trainer.model.generation_config
    settings.num_beams, settings.no_repeat_ngram_size = 1, 0  # off
    assert isinstance(trainer._recorder(), SharedPrefixSampler)
    settings.no_repeat_ngram_size = 2
    with pytest.raises(ValueError, match="no_repeat_ngram_size=2 in the model's generation_config"):
        trainer._recorder()


def test_a_model_with_another_generate(tmp_path):
    trainer = make_trainer(tmp_path, rollout_sampler="shared_prefix")
    trainer.model.generate = trainer.model.generate
    with pytest.raises(ValueError, match="does not work with another generate method"):
        trainer._recorder()


def test_prompt_tuning(tmp_path):
    tuned = {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)}
    with pytest.raises(ValueError, match="does not work with the adapter PromptTuningConfig"):
        make_trainer(tmp_path, trainer_options=tuned, rollout_sampler="shared_prefix")


def test_completions_that_were_not_sampled(tmp_path):
    trainer = make_trainer(tmp_path, **ONE_ROLLOUT)
    generate = trainer._generate_single_turn

    def rewritten(*args, **options):
        completions, log_probs = generate(*args, **options)
        return [[5, *ids[1:]] for ids in completions], log_probs

    trainer._generate_single_turn = rewritten
    with pytest.raises(RuntimeError, match="differ from the sampled ones"):
        trainer.train()

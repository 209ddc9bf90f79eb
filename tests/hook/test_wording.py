"""The model reads the same prompts, and its responses end alike, in training, callback, values and evaluation."""

import functools
import json
import sys
from types import SimpleNamespace

import pandas
import pytest
import torch
from datasets import Dataset
from observe import cache_of, keep_outputs
from toy import OPTIONS, TASK, base_model, byte_tokenizer, make_trainer
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from canon_trl import CANONConfig, CANONTrainer
from canon_trl.cli import evaluate
from canon_trl.cli import values as estimate_values
from canon_trl.cli.sampling import SamplingArguments
from canon_trl.evaluation import EvaluationCallback
from canon_trl.sampling.samplers import Response, TransformersSampler, make_sampler

TEMPLATE = """{% for m in messages %}{{ m['content'] }}
{% endfor %}{% if add_generation_prompt %}<bot>
{% if enable_thinking is defined and not enable_thinking %}<answer>{% else %}<think>{% endif %}{% endif %}"""
# Text after <think> is no answer; see `parse_response` of transformers.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<bot>\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close_pattern": "</think>", "content": "text"},
        "content": {"open_pattern": "(?:<answer>)?", "close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
QUESTIONS = ["1+1?", "How many letters has this question?", "Yes or no?"]
DATA = Dataset.from_list([{"prompt": [{"role": "user", "content": text}], "answer": "1"} for text in QUESTIONS])
NOT_THINKING = {"enable_thinking": False}
seen_by_reward = []


def even(completions, **kwargs):
    seen_by_reward.append(completions)
    return [float(len(completion[0]["content"]) % 2) for completion in completions]


@pytest.fixture(scope="module")
def chatter(tmp_path_factory):
    """A small untrained model with a chat template, which writes bytes."""
    folder = tmp_path_factory.mktemp("chatter")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        head_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        dtype="float32",
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def prompts_read(monkeypatch):
    """The prompts that models read from here on, without padding: one per row of a pass that begins a response."""
    read, forward = [], Qwen3ForCausalLM.forward

    @functools.wraps(forward)
    def keep(self, *args, **kwargs):
        if cache_of(kwargs) is None:
            rows = zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True)
            read.extend(tuple(ids[mask.bool()].tolist()) for ids, mask in rows)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Qwen3ForCausalLM, "forward", keep)
    return read


def make(model, folder, **options):
    config = CANONConfig(str(folder), **(OPTIONS | {"max_steps": 2} | options))
    return CANONTrainer(str(model), even, config, DATA)


def script_flags(folder, model, name, chat_template_kwargs):
    Dataset.from_list([{"prompt": text, "answer": "1"} for text in QUESTIONS]).to_json(folder / "data.jsonl")
    flags = ["--dataset_name", str(folder / "data.jsonl"), "--model_name_or_path", str(model)]
    flags += ["--reward_funcs", "test_wording:even", "--output_dir", str(folder / name), "--num_samples", "2"]
    flags += ["--max_completion_length", "4"]
    if chat_template_kwargs is not None:
        flags += ["--chat_template_kwargs", json.dumps(chat_template_kwargs)]
    return flags if name == "evaluation" else [*flags, "--include_test", "false"]


@pytest.mark.parametrize("chat_template_kwargs", [None, NOT_THINKING])
def test_the_model_reads_the_same_prompts_everywhere(chatter, tmp_path, prompts_read, chat_template_kwargs):
    trainer = make(chatter, tmp_path / "trained", chat_template_kwargs=chat_template_kwargs)
    outputs = keep_outputs(trainer)
    trainer.train()
    trained_on = {
        tuple(ids[mask.bool()].tolist())
        for output in outputs
        for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)
    }
    ends = "<bot>\n<answer>" if chat_template_kwargs else "<bot>\n<think>"
    assert {trainer.processing_class.decode(ids) for ids in trained_on} == {f"{text}\n{ends}" for text in QUESTIONS}

    prompts_read.clear()
    EvaluationCallback(trainer, DATA, even, num_samples=2, max_completion_length=4).evaluate()
    assert set(prompts_read) == trained_on, "the callback"
    prompts_read.clear()
    estimate_values.main(script_flags(tmp_path, chatter, "values", chat_template_kwargs))
    assert set(prompts_read) == trained_on, "values"
    prompts_read.clear()
    evaluate.main(script_flags(tmp_path, chatter, "evaluation", chat_template_kwargs))
    assert set(prompts_read) == trained_on, "evaluate"

    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert summary["data"]["settings"]["chat_template_kwargs"] == chat_template_kwargs
    wanted = f"| `chat_template_kwargs` | `{json.dumps(chat_template_kwargs)}` |"
    assert wanted in (tmp_path / "values" / "README.md").read_text()


def test_the_callback_follows_options_that_change(chatter, tmp_path, prompts_read):
    trainer = make(chatter, tmp_path)
    callback = EvaluationCallback(trainer, DATA, even, num_samples=2, max_completion_length=4)
    trainer.chat_template_kwargs = NOT_THINKING
    callback.evaluate()
    assert {trainer.processing_class.decode(ids)[-8:] for ids in prompts_read} == {"<answer>"}


SCRIPTS = [(estimate_values, "values"), (evaluate, "evaluation")]


@pytest.mark.parametrize(("script", "name"), SCRIPTS)
def test_folders_with_other_prompts_are_rejected(chatter, tmp_path, script, name):
    script.main(script_flags(tmp_path, chatter, name, None))
    with pytest.raises(
        ValueError, match=r"was started with chat_template_kwargs=None, not \{'enable_thinking': False\}"
    ):
        script.main(script_flags(tmp_path, chatter, name, NOT_THINKING))


@pytest.mark.parametrize(("script", "name"), SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--chat_template_kwargs", "[1]"], r"chat_template_kwargs=\[1\] must map option names to values"),
        (
            ["--chat_template_kwargs", '{"add_generation_prompt": false}'],
            "the chat template fails on the first prompt with chat_template_kwargs=.*multiple values",
        ),
        (["--min_p", "2"], r"min_p=2.0 must lie in \[0, 1\]"),
        (["--repetition_penalty", "0"], "repetition_penalty=0.0 must be positive and finite; 1 is no penalty"),
    ],
)
def test_unusable_prompts_are_found_before_the_model_is_loaded(chatter, tmp_path, script, name, flags, message, capfd):
    with pytest.raises(ValueError, match=message):
        script.main([*script_flags(tmp_path, chatter, name, None), *flags])
    assert "Loading weights" not in capfd.readouterr().err


@pytest.mark.parametrize(("script", "name"), SCRIPTS)
def test_conversations_need_a_chat_template(tmp_path, script, name, capfd):
    with pytest.raises(ValueError, match="the prompts are conversations, but the tokenizer has no chat template"):
        script.main(script_flags(tmp_path, TASK.model_path, name, None))
    assert "Loading weights" not in capfd.readouterr().err


def test_reward_functions_receive_the_same_parsed_responses(chatter, tmp_path):
    """If the tokenizer defines how to parse responses, TRL passes the parsed ones."""
    folder = tmp_path / "chatter"
    Qwen3ForCausalLM.from_pretrained(chatter).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(chatter)
    tokenizer.response_template = RESPONSE_TEMPLATE
    tokenizer.save_pretrained(folder)
    for chat_template_kwargs, empty in ((None, True), (NOT_THINKING, False)):
        here = tmp_path / str(empty)
        here.mkdir()
        seen_by_reward.clear()
        trainer = make(folder, here / "trained", chat_template_kwargs=chat_template_kwargs, max_steps=1)
        trainer.train()
        in_training = [completion[0] for completions in seen_by_reward for completion in completions]
        seen_by_reward.clear()
        EvaluationCallback(trainer, DATA, even, num_samples=2, max_completion_length=4).evaluate()
        evaluate.main(script_flags(here, folder, "evaluation", chat_template_kwargs))
        evaluated = [completion[0] for completions in seen_by_reward for completion in completions]
        for messages in (in_training, evaluated):
            assert {message["content"] == "" for message in messages} == {empty}, "the whole response is reasoning"
            assert {"reasoning_content" in message for message in messages} == {empty}


def generated(model, tokenizer, prompt, **options):
    ids = tokenizer(prompt, return_tensors="pt")
    config = GenerationConfig(
        max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    written = model.generate(**ids, generation_config=config, tokenizer=tokenizer, **options)
    return written[0, ids["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("penalty", [1.5, 0.7])
def test_the_sampler_writes_what_generate_writes(penalty):
    """Greedy decoding of a batch with prompts of several lengths, in which rows finish early."""
    tokenizer, model = AutoTokenizer.from_pretrained(TASK.model_path), base_model()
    options = {"repetition_penalty": penalty}
    prompts = [*TASK.dataset("test", 20)["prompt"], "1*2=", "9-9*1="]
    sample = TransformersSampler(model, tokenizer, num_samples=2, max_new_tokens=40, top_k=1, **options)
    plain = TransformersSampler(model, tokenizer, num_samples=2, max_new_tokens=40, top_k=1)
    sampled = sample(prompts, 0)
    assert sampled != plain(prompts, 0), "the option matters"
    for prompt, responses in zip(prompts, sampled, strict=True):
        assert [response.ids for response in responses] == [generated(model, tokenizer, prompt, **options)] * 2


def test_a_stop_string_ends_a_response_as_it_ends_generate(chatter):
    """Other responses are cut off at the maximum length, and rows finish early."""
    tokenizer, model = AutoTokenizer.from_pretrained(chatter), Qwen3ForCausalLM.from_pretrained(chatter)
    options = {"num_samples": 1, "max_new_tokens": 40, "top_k": 1}
    plain = [given[0].ids for given in TransformersSampler(model, tokenizer, **options)(QUESTIONS, 0)]
    stops = [tokenizer.decode(plain[0][3:5]), tokenizer.decode(plain[2][:2])[1:] + "no such text"]
    sampled = TransformersSampler(model, tokenizer, **options, stop_strings=stops)(QUESTIONS, 0)
    assert sampled[0][0].ids == plain[0][:5] and not sampled[0][0].truncated
    assert sampled[2][0].ids == plain[2] and sampled[2][0].truncated
    for prompt, (response,) in zip(QUESTIONS, sampled, strict=True):
        assert response.ids == generated(model, tokenizer, prompt, stop_strings=stops)


def test_min_p_removes_unlikely_tokens():
    """Compares the share of each first token over many responses with the renormalised probabilities."""
    tokenizer, model = AutoTokenizer.from_pretrained(TASK.model_path), base_model()
    prompt = "7+8*3-9+4*6="
    with torch.no_grad():
        probs = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].softmax(-1)
    kept = probs >= 0.2 * probs.max()
    assert 1 < kept.sum() < len(probs)
    (responses,) = TransformersSampler(model, tokenizer, num_samples=4000, max_new_tokens=1, min_p=0.2)([prompt], 3)
    shares = torch.tensor([response.ids[0] for response in responses]).bincount(minlength=len(probs)) / 4000
    torch.testing.assert_close(shares, probs * kept / probs[kept].sum(), atol=0.03, rtol=0)
    assert (shares[~kept] == 0).all()


def test_responses_end_as_in_training(chatter, tmp_path):
    """The callback uses the stop texts that training gives vLLM; the script has its own option."""
    stops = [letter for letter in "aeiou0123456789.,#"]
    trainer = make(chatter, tmp_path / "trained")
    trainer.args.generation_kwargs = {"stop": stops}  # which the config accepts with vLLM only
    written = []

    def keep(completions, **kwargs):
        written.extend(completion[0]["content"] for completion in completions)
        return [1.0] * len(completions)

    EvaluationCallback(trainer, DATA, keep, num_samples=8, max_completion_length=30).evaluate()
    flags = script_flags(tmp_path, chatter, "evaluation", None)
    evaluate.main([*flags, "--stop_strings", *stops, "--save_responses", "true", "--max_completion_length", "30"])
    table = pandas.read_parquet(tmp_path / "evaluation" / "data" / "records.parquet")
    recorded = [text for texts in table["responses"] for text in texts]
    for texts in (written, recorded):
        assert sum(text.endswith(tuple(stops)) for text in texts) > 2
        assert not any(letter in text[:-1] for text in texts for letter in stops)


class Engine:
    """Replaces vLLM's engine, which is not installed here, and records the requests."""

    def generate(self, prompts, parameters, use_tqdm):
        self.prompts = [prompt["prompt_token_ids"] for prompt in prompts]
        self.parameters = parameters
        written = SimpleNamespace(token_ids=[1, 2], cumulative_logprob=-3.0, finish_reason="stop")
        return [SimpleNamespace(outputs=[written]) for _ in prompts]


def test_vllm_receives_the_same_prompts_and_stop_texts(chatter, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    tokenizer, engine = AutoTokenizer.from_pretrained(chatter), Engine()
    own = {"min_p": 0.1, "repetition_penalty": 1.2, "stop_strings": ["###"], "chat_template_kwargs": NOT_THINKING}
    options = SamplingArguments(num_samples=1, **own)
    sample = make_sampler(engine, tokenizer, options, use_vllm=True, entropies=True)
    assert sample(DATA["prompt"][:], 0) == [[Response([1, 2], False, 1.5)]] * 3
    assert [tokenizer.decode(ids) for ids in engine.prompts] == [f"{text}\n<bot>\n<answer>" for text in QUESTIONS]
    for each in engine.parameters:
        assert (each.min_p, each.repetition_penalty, each.stop, each.detokenize) == (0.1, 1.2, ["###"], True)
        assert (each.top_k, each.temperature, each.logprobs, each.max_tokens) == (-1, 1.0, 0, 256)


def answer(question: str) -> str:
    """Answers a question.

    Args:
        question: what is asked.
    """
    return question


@pytest.mark.parametrize(
    ("name", "value"), [("tools", [answer]), ("environment_factories", {None: object}), ("rollout_func", print)]
)
def test_options_that_the_callback_cannot_follow_are_rejected(name, value, tmp_path):
    trainer = make_trainer(tmp_path)
    setattr(trainer, name, value)
    with pytest.raises(ValueError, match=f"the trainer has {name}, which evaluation does not support"):
        EvaluationCallback(trainer, TASK.dataset("test", 4), TASK.reward)

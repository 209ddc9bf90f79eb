"""Datasets and prompts that cannot be trained on: the error names the dataset, the row and what is missing."""

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from toy import NO_MODEL, TASK, base_model, build, config, make_trainer, prompts
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from canon_trl import CANONTrainer


def with_prompt(prompt, row=3, rows=8):
    """Valid conversations, with this prompt in one row."""
    sound = [{"role": "user", "content": "1 + 1?"}]
    return Dataset.from_list([{"prompt": prompt if i == row else sound, "answer": "2"} for i in range(rows)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_prompt(None), "the prompt of row 3 is None; fix it or remove the row"),
        (with_prompt([]), "the prompt of row 3 is an empty conversation"),
        (
            with_prompt([{"role": "user"}]),
            "the prompt of row 3 has a message without content at position 0: {'role': 'user', 'content': None}",
        ),
        (with_prompt([{"content": "a"}]), "the prompt of row 3 has no message with a role at position 0"),
        (with_prompt(None, row=5).select([0, 1, 5, 6]), "the prompt of row 2 is None"),
        (Dataset.from_dict({"prompt": ["a", "b", None, "c"]}), "the prompt of row 2 is None"),
        (Dataset.from_dict({"prompt": ["a", ""]}), "the prompt of row 1 is an empty string"),
        (Dataset.from_dict({"prompt": [1, 2]}), "the prompt of row 0 is neither a string nor a list of messages: 1"),
        (
            Dataset.from_dict({"prompt": [["a"], ["b"]]}),
            "the prompt of row 0 has no message with a role at position 0: 'a'",
        ),
    ],
    ids=[
        "none",
        "empty",
        "no content",
        "no role",
        "selected rows",
        "no text",
        "empty text",
        "numbers",
        "lists of text",
    ],
)
@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_the_error_names_an_unusable_prompt(name, data, message):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        build({name: data})
    several = {"fine": prompts(4), "other": data}
    if name == "eval_dataset":
        with pytest.raises(ValueError, match=f"eval_dataset 'other': {message}"):
            build({name: several})


def test_rows_that_are_not_selected_may_be_wrong():
    with pytest.raises(OSError):  # because the model does not exist
        build({"train_dataset": Dataset.from_dict({"prompt": ["a", None, "b"]}).select([0, 2])})


def test_a_message_that_calls_tools_needs_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    data = with_prompt([{"role": "user", "content": "1?", "tool_calls": None}, call])
    with pytest.raises(OSError):
        build({"train_dataset": data})


def test_rows_are_checked_after_their_transform():
    raw = Dataset.from_dict({"question": ["1?", "2?", "3?"]})
    made = raw.with_transform(lambda rows: {"prompt": rows["question"], "prompts": rows["question"]})
    with pytest.raises(ValueError, match=r"train_dataset has the columns \['prompts'\]"):
        build({"train_dataset": made})


def rows_until_wrong(place, wrong):
    """A stream of prompts, one of which is wrong."""

    def rows():
        for index, row in enumerate(prompts(16)):
            yield row | {"prompt": wrong} if index == place else row

    return IterableDataset.from_generator(rows)


@pytest.mark.parametrize(("wrong", "fault"), [(None, "is None"), ([], "is an empty conversation")])
def test_a_wrong_prompt_in_a_stream_is_named_when_it_comes(tmp_path, wrong, fault):
    with pytest.raises(ValueError, match=f"train_dataset: the prompt {fault}; .*'answer'"):
        build({"train_dataset": rows_until_wrong(1, wrong)})  # in the first rollout
    stream = rows_until_wrong(5, wrong)
    trainer = make_trainer(tmp_path, trainer_options={"train_dataset": stream}, max_steps=8, shuffle_dataset=False)
    with pytest.raises(ValueError, match=f"train_dataset: the prompt {fault}; .*'answer'"):
        trainer.train()
    assert trainer.state.global_step == 2  # with two prompts per step
    trainer = make_trainer(tmp_path, trainer_options={"eval_dataset": rows_until_wrong(5, wrong)})
    with pytest.raises(ValueError, match=f"eval_dataset: the prompt {fault}"):
        trainer.evaluate()


def test_a_wrong_prompt_among_those_that_dynamic_sampling_draws(tmp_path):
    stream = rows_until_wrong(5, None)
    options = {"max_steps": 8, "shuffle_dataset": False, "dynamic_sampling": True}
    trainer = make_trainer(
        tmp_path,
        trainer_options={"train_dataset": stream, "reward_funcs": lambda completions, **_: [1.0] * 8},
        **options,
    )
    with pytest.raises(ValueError, match="train_dataset: the prompt is None"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            DatasetDict(train=prompts(4), test=prompts(4)),
            r"DatasetDict with the splits \['train', 'test'\]; .*\['train'\]",
        ),
        (IterableDatasetDict(a=prompts(4).to_iterable_dataset()), r"IterableDatasetDict with the splits \['a'\]"),
        ("trl-lib/DeepMath-103K", "train_dataset is a str; it must be a Dataset or an IterableDataset"),
    ],
)
def test_train_dataset_must_be_a_dataset(data, message):
    with pytest.raises(TypeError, match=message):
        build({"train_dataset": data})


@pytest.mark.parametrize("data", ["a name", {"a": [{"prompt": "1?"}]}, {"a": DatasetDict(b=prompts(4))}])
def test_eval_dataset_must_be_a_dataset(data):
    with pytest.raises(TypeError, match=r"eval_dataset.* is a (str|list|DatasetDict); it must be a Dataset"):
        build({"eval_dataset": data})


def test_several_splits_may_be_held_out(tmp_path):
    held_out = DatasetDict(first=prompts(4), second=prompts(8))
    scores = make_trainer(tmp_path, trainer_options={"eval_dataset": held_out}).evaluate()
    assert {"eval_first_loss", "eval_second_loss"} <= scores.keys()


CONVERSATIONS = with_prompt([{"role": "user", "content": "2 + 2?"}])


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize("given", [True, False], ids=["tokenizer given", "tokenizer named"])
def test_conversations_need_a_chat_template(tmp_path, name, given):
    """The error comes before the weights are read, which do not exist."""
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    tokenizer.save_pretrained(tmp_path / "model")
    base_model().config.save_pretrained(tmp_path / "model")
    options = {"processing_class": tokenizer} if given else {}
    data = {"train_dataset": prompts(8)} | {name: CONVERSATIONS}
    with pytest.raises(
        ValueError, match="prompts are conversations, and the tokenizer of the model has no chat templ"
    ):
        CANONTrainer(str(tmp_path / "model"), TASK.reward, config(), **data, **options)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(OSError, match=r"model.safetensors"):
        CANONTrainer(str(tmp_path / "model"), TASK.reward, config(), **data, **options)


def test_a_loaded_model_needs_a_chat_template_as_well():
    with pytest.raises(ValueError, match="the tokenizer of the model has no chat template"):
        CANONTrainer(base_model(), TASK.reward, config(), CONVERSATIONS)


def test_a_reward_model_needs_a_chat_template_as_well():
    model_tokenizer, judge_tokenizer = (AutoTokenizer.from_pretrained(TASK.model_path) for _ in range(2))
    model_tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    judge = AutoModelForSequenceClassification.from_pretrained(TASK.model_path, num_labels=1)
    classes = {"processing_class": model_tokenizer, "reward_processing_classes": [judge_tokenizer]}
    with pytest.raises(ValueError, match="the tokenizer of the reward model 'arithmetic_model' has no chat template"):
        CANONTrainer(base_model(), [judge], config(), CONVERSATIONS, **classes)


def test_a_model_without_a_tokenizer_is_left_to_trl():
    with pytest.raises(OSError):
        build({"train_dataset": CONVERSATIONS})


@pytest.mark.parametrize("name", ["/no/such/folder", "./outputs/canon", "outputs/canon/checkpoint-80", "../model"])
def test_a_folder_that_does_not_exist(name):
    with pytest.raises(ValueError, match=f"model='{name}': there is no such folder, and a model on the Hub has"):
        CANONTrainer(name, TASK.reward, config(), prompts(8))
    with pytest.raises(ValueError, match=f"reward_funcs='{name}': there is no such folder"):
        CANONTrainer(NO_MODEL, [TASK.reward, name], config(), prompts(8))

"""What an evaluation rejects before a model is loaded, and how benchmarks name their data."""

import pytest
from datasets import Dataset
from recipe_runs import data_flags

from canon_trl.cli import evaluate


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--num_samples", "4", "--pass_at_k", "5"], ValueError, r"pass_at_k has \[5\]; each must lie between 1 and"),
        (["--majority_at_k", "0"], ValueError, r"majority_at_k has \[0\]; each must lie between 1 and num_samples=16"),
        (["--confidence", "95"], ValueError, r"confidence=95.0 must lie in \(0, 1\)"),
        (["--task", "poetry"], ValueError, "task='poetry' must be one of"),
        (["--answer_extractor", "magic"], ValueError, r"answer_extractor='magic' is unknown; choose one of"),
        (["--answer_extractor", "no.such:thing"], ValueError, "answer_extractor='no.such:thing' cannot be imported"),
        (
            ["--task_train_prompts", "3"],
            ValueError,
            "task_train_prompts=3 would be ignored: an evaluation does not train",
        ),
        (["--dataset_streaming", "true"], ValueError, "dataset_streaming=True would be ignored"),
        (["--reward_funcs", "model:judge"], TypeError, "reward_funcs has 'judge', which is not a reward"),
        (["--vllm_kwargs", '{"a": 1}'], ValueError, "would be ignored: use_vllm is False"),
        (["--use_vllm", "true"], ImportError, r"install canon-trl\[vllm\]"),
        (["--load_in_8bit", "true"], ValueError, "load_in_8bit=True would be ignored: the model is sampled as it is"),
        (
            ["--use_vllm", "true", "--vllm_kwargs", '{"logprobs_mode": "raw_logits"}'],
            ValueError,
            "logprobs_mode='raw_logits'; must be 'processed_logprobs'",
        ),
    ],
)
def test_bad_flags(flags, error, message, tmp_path):
    with pytest.raises(error, match=message):
        evaluate.main([*flags, "--output_dir", str(tmp_path / "evaluation")])
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize(
    ("row", "flags", "message"),
    [
        ({"question": "?", "answer": "1"}, [], "prompt_column='prompt' is not in"),
        (
            {"prompt": "?", "answer": "1", "rewards": 1},
            [],
            r"the data has columns \['rewards'\], which the records use",
        ),
        ({"prompt": "?", "answer": "1"}, [], "the tokenizer has no chat template; set chat_template_path"),
        ({"prompt": "?", "answer": "1"}, ["--majority_at_k", "2"], r"majority_at_k=\[2\] needs an answer_extractor"),
    ],
)
def test_bad_data(row, flags, message, tmp_path):
    Dataset.from_list([row]).to_json(tmp_path / "data.jsonl")
    rewards = ["--reward_funcs", "accuracy_reward", "--output_dir", str(tmp_path / "evaluation")]
    with pytest.raises(ValueError, match=message):
        evaluate.main(data_flags(tmp_path / "data.jsonl", *rewards, *flags))


@pytest.mark.parametrize(
    ("benchmarks", "message"),
    [
        ("[{task: arithmetic}]", "an entry with name=None; it must be the name of a folder"),
        ("[{name: ../up, task: arithmetic}]", "an entry with name='../up'"),
        ("[{name: a, task: arithmetic}, {name: a, task: arithmetic}]", r"have the names \['a', 'a'\]"),
        ("[{name: a, task: arithmetic, use_vllm: true}]", r"a has the unknown options \['use_vllm'\]; known:"),
        ("[{name: a, task: arithmetic, num_sampels: 3}]", r"a has the unknown options \['num_sampels'\]"),
        ("[{name: a, task: arithmetic, num_samples: 0}]", "num_samples=0 must be at least 1"),
        ("[{name: a}]", "give exactly one of them"),
        ("[{name: a, dataset_name: x, reward_funcs: [accuracy_reward]}]", "model_name_or_path is missing"),
    ],
)
def test_bad_benchmarks(benchmarks, message, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"output_dir: {tmp_path}/evaluation\nbenchmarks: {benchmarks}\n")
    with pytest.raises(ValueError, match=message):
        evaluate.main(["--config", str(tmp_path / "recipe.yaml")])


def test_benchmarks_name_their_own_data(tmp_path):
    (tmp_path / "recipe.yaml").write_text("task: arithmetic\nbenchmarks: [{name: a, task: arithmetic}]\n")
    with pytest.raises(ValueError, match="task='arithmetic' and dataset_name=None: with benchmarks, each entry"):
        evaluate.main(["--config", str(tmp_path / "recipe.yaml")])

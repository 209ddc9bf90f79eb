"""What a recipe makes of files and columns: prompts, answers and held-out data."""

import json
import logging

import datasets
import pytest
import yaml
from recipe_runs import RUN, moved_from_the_base_model, parse_canon
from toy import TASK, base_model
from transformers import AutoTokenizer

from canon_trl.cli import evaluate, train
from canon_trl.cli import values as estimate_values
from canon_trl.cli.arguments import RecipeArguments
from canon_trl.cli.data import load_data, load_held_out
from canon_trl.cli.rewards import REWARDS


@pytest.mark.parametrize(
    ("answers", "template", "want"),
    [
        (["3\\sqrt{13}", "p - q"], "${answer}$", ["$3\\sqrt{13}$", "$p - q$"]),
        ([["$1$", "$2$"], ["7"]], "{answer}", ["$1$, $2$", "7"]),
    ],
)
def test_solutions_are_made_from_answers(tmp_path, answers, template, want):
    datasets.Dataset.from_dict({"prompt": ["a", "b"], "answer": answers}).to_json(tmp_path / "data.jsonl")
    flags = ["--dataset_name", str(tmp_path / "data.jsonl"), "--model_name_or_path", "m"]
    arguments, *_ = parse_canon(*flags, "--reward_funcs", "accuracy_reward", "--answer_template", template)
    train, _ = load_data(arguments, wants_eval=False)
    assert train["solution"][:] == want


ANSWERS = ["2", None, "", " ", "3"]
SOLUTIONS = ["$2$", None, None, None, "$3$"]


def write_rows(path, rows, form):
    """Write rows to a file of this type; return its path as text."""
    file = path / f"data.{form}"
    table = datasets.Dataset.from_list(rows)
    {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[form](file)
    return str(file)


def of_file(path, *flags):
    """The recipe for a file with one reward function."""
    given = ["--dataset_name", str(path), "--model_name_or_path", str(TASK.model_path)]
    return parse_canon(*given, "--reward_funcs", "accuracy_reward", *flags)[0]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_missing_answer_stays_missing(tmp_path, form, caplog):
    path = write_rows(tmp_path, [{"prompt": f"{i}?", "answer": answer} for i, answer in enumerate(ANSWERS)], form)
    with caplog.at_level(logging.WARNING):
        train, _ = load_data(of_file(path, "--answer_template", "${answer}$"), wants_eval=False)
    assert train["solution"][:] == SOLUTIONS
    assert "3 of 5 prompts have no answer in answer_column='answer', the first in row 1" in caplog.text


@pytest.mark.parametrize(
    ("answers", "want"),
    [
        ([["1", None], ["1", "2"], [], None], [None, "1, 2", None, None]),
        ([float("nan"), 2.0, 0.5, None], [None, "2", "0.5", None]),
        ([7, None, 0], ["7", None, "0"]),
        ([None] * 1500 + ["1"], [None] * 1500 + ["1"]),  # the first rows have no type
    ],
    ids=["lists", "numbers", "whole numbers", "the first thousand"],
)
def test_missing_answers_of_every_type(tmp_path, answers, want):
    path = write_rows(tmp_path, [{"prompt": "1 + 1?", "answer": answer} for answer in answers], "parquet")
    train, _ = load_data(of_file(path), wants_eval=False)
    assert train["solution"][:] == want


@pytest.mark.parametrize("name", ["accuracy_reward", "reasoning_accuracy_reward"])
def test_a_response_to_a_prompt_without_an_answer_is_not_scored(name):
    texts = [r"so $3$ </think> \boxed{3}", r"so $3$ </think> \boxed{4}", "without an end"]
    responses = [[{"role": "assistant", "content": text}] for text in texts]
    assert REWARDS[name](completions=responses, solution=[None] * 3) == [None] * 3
    assert REWARDS[name](completions=responses, solution=["$3$"] * 3) == [1.0, 0.0, 0.0]


def chat_model(folder):
    """The embedded model with a chat template; the path as text."""
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    tokenizer.save_pretrained(folder)
    base_model().save_pretrained(folder)
    return str(folder)


def judged(completions, solution, **kwargs):
    """1 if a response ends with the answer; without an answer it cannot be judged."""
    texts = [completion[0]["content"] for completion in completions]
    return [None if s is None else float(text.endswith(s)) for text, s in zip(texts, solution, strict=True)]


def test_values_leave_out_prompts_that_cannot_be_judged(tmp_path, capsys):
    rows = TASK.dataset("train", 6).to_list()
    rows[2]["answer"] = rows[5]["answer"] = None
    flags = ["--dataset_name", write_rows(tmp_path, rows, "jsonl"), "--reward_funcs", f"{__name__}:judged"]
    flags += ["--model_name_or_path", chat_model(tmp_path / "model"), "--output_dir", str(tmp_path / "values")]
    estimate_values.main([*flags, "--num_samples", "4", "--max_completion_length", "12", "--include_test", "false"])
    values = datasets.load_dataset(str(tmp_path / "values"))["train"]
    assert values["prompt"][:] == [[{"role": "user", "content": rows[i]["prompt"]}] for i in (0, 1, 3, 4)]
    assert "train: dropping 2 of 6 prompts without a scored response; the first is prompt 2" in (
        capsys.readouterr().out
    )


def test_values_without_any_prompt(tmp_path):
    rows = [row | {"answer": None} for row in TASK.dataset("train", 2).to_list()]
    flags = ["--dataset_name", write_rows(tmp_path, rows, "jsonl"), "--reward_funcs", f"{__name__}:judged"]
    flags += ["--model_name_or_path", chat_model(tmp_path / "model"), "--output_dir", str(tmp_path / "values")]
    with pytest.raises(
        ValueError, match="train: no response to any of the 2 prompts was scored: every reward is None"
    ):
        estimate_values.main([*flags, "--num_samples", "2", "--include_test", "false"])


def test_prompts_without_an_answer_are_not_evaluated(tmp_path):
    rows = TASK.dataset("test", 6).to_list()
    rows[2]["answer"] = None
    flags = ["--dataset_name", write_rows(tmp_path, rows, "jsonl"), "--reward_funcs", f"{__name__}:judged"]
    flags += ["--model_name_or_path", chat_model(tmp_path / "model"), "--output_dir", str(tmp_path / "scores")]
    evaluate.main([*flags, "--num_samples", "4", "--max_completion_length", "12"])
    numbers = json.loads((tmp_path / "scores" / "summary.json").read_text())["data"]
    assert (numbers["num_prompts"], numbers["unscored_prompts"]) == (5, 1)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "folder"])
def test_local_datasets(tmp_path, kind):
    rows = datasets.Dataset.from_dict({"question": ["What is 1 + 1?"], "target": ["2"]})
    path = tmp_path / (kind if kind == "folder" else f"data.{kind}")
    if kind == "folder":
        path.mkdir()
        rows.to_json(path / "train.jsonl")
    else:
        getattr(rows, {"jsonl": "to_json", "csv": "to_csv", "parquet": "to_parquet"}[kind])(path)
    columns = ["--prompt_column", "question", "--answer_column", "target", "--system_prompt", "Be brief."]
    flags = ["--dataset_name", str(path), "--model_name_or_path", "m", "--reward_funcs", "accuracy_reward"]
    arguments, *_ = parse_canon(*flags, *columns)
    train, held_out = load_data(arguments, wants_eval=False)
    assert held_out is None
    assert train[0]["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 1?"},
    ]
    assert train[0]["solution"] == "2"


def test_a_system_prompt_precedes_conversations_that_have_none(tmp_path):
    asked = [{"role": "user", "content": "1 + 1?"}]
    given = [{"role": "system", "content": "Be verbose."}, *asked]
    datasets.Dataset.from_list([{"prompt": prompt, "answer": "2"} for prompt in (asked, given)]).to_json(
        tmp_path / "data.jsonl"
    )
    flags = ["--dataset_name", str(tmp_path / "data.jsonl"), "--model_name_or_path", "m"]
    arguments, *_ = parse_canon(*flags, "--reward_funcs", "accuracy_reward", "--system_prompt", "Be brief.")
    train, _ = load_data(arguments, wants_eval=False)
    assert train["prompt"][:] == [[{"role": "system", "content": "Be brief."}, *asked], given]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_held_out_prompts_in_a_separate_file(tmp_path, form, streaming):
    (tmp_path / "held out").mkdir()
    train = write_rows(tmp_path, [{"prompt": "1 + 1?", "answer": "2"}], form)
    held_out = write_rows(tmp_path / "held out", [{"prompt": "2 + 2?", "answer": "4"}], form)
    flags = ["--eval_dataset_name", held_out, "--dataset_streaming", streaming]
    recipe_of_both = of_file(train, *flags)
    both = load_data(recipe_of_both, wants_eval=True)
    kind = datasets.IterableDataset if streaming == "true" else datasets.Dataset
    assert [type(data) for data in both] == [kind] * 2
    assert [next(iter(data))["solution"] for data in both] == ["2", "4"]
    assert next(iter(load_held_out(recipe_of_both)))["solution"] == "4"
    assert next(iter(load_held_out(of_file(train, *flags[2:]))))["solution"] == "2"
    with pytest.raises(ValueError, match=r"eval_dataset_name='.*' would be ignored, because the run uses no held-out"):
        load_data(recipe_of_both, wants_eval=False)
    with pytest.raises(ValueError, match=r"has no split 'test'; it has \['train'\]; set eval_dataset_name"):
        load_data(of_file(train, *flags[2:]), wants_eval=True)


def test_a_held_out_dataset_has_splits_and_a_configuration(tmp_path):
    folder = tmp_path / "benchmark"
    for configuration, answer in {"easy": "1", "hard": "2"}.items():
        (folder / configuration).mkdir(parents=True)
        write_rows(folder / configuration, [{"prompt": "?", "answer": answer}], "jsonl")
    card = {
        "configs": [
            {"config_name": name, "data_files": [{"split": "exam", "path": f"{name}/*"}]} for name in ("easy", "hard")
        ]
    }
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    train = write_rows(tmp_path, [{"prompt": "1 + 1?", "answer": "2"}], "jsonl")
    flags = ["--eval_dataset_name", str(folder), "--eval_dataset_config", "hard", "--dataset_test_split", "exam"]
    _, held_out = load_data(of_file(train, *flags), wants_eval=True)
    assert held_out["solution"][:] == ["2"]


def test_training_on_a_streamed_file(tmp_path):
    """Training and evaluation each stream a file."""
    (tmp_path / "held out").mkdir()
    data = write_rows(tmp_path, TASK.dataset("train", 16).to_list(), "jsonl")
    held_out = write_rows(tmp_path / "held out", TASK.dataset("test", 4).to_list(), "jsonl")
    flags = ["--dataset_name", data, "--dataset_streaming", "true", "--eval_dataset_name", held_out]
    flags += ["--model_name_or_path", chat_model(tmp_path / "model"), "--reward_funcs", f"{__name__}:judged"]
    trainer = train.main([*RUN[6:], "--max_steps", "2", "--output_dir", str(tmp_path / "trained"), *flags])
    assert trainer.state.global_step == 2
    history = json.loads((tmp_path / "trained" / "metrics.json").read_text())
    assert [entry["step"] for entry in history if "eval_rewards/judged/mean" in entry] == [0, 2]
    assert moved_from_the_base_model(tmp_path / "trained") > 1e-4


def test_values_and_evaluation_use_the_held_out_file(tmp_path):
    (tmp_path / "held out").mkdir()
    data = write_rows(tmp_path, TASK.dataset("train", 4).to_list(), "jsonl")
    held_out = write_rows(tmp_path / "held out", TASK.dataset("test", 3).to_list(), "parquet")
    flags = ["--dataset_name", data, "--eval_dataset_name", held_out, "--reward_funcs", f"{__name__}:judged"]
    flags += ["--model_name_or_path", chat_model(tmp_path / "model"), "--num_samples", "2"]
    flags += ["--max_completion_length", "12", "--output_dir"]
    estimate_values.main([*flags, str(tmp_path / "values")])
    values = datasets.load_dataset(str(tmp_path / "values"))
    assert {split: len(part) for split, part in values.items()} == {"train": 4, "test": 3}
    assert json.loads((tmp_path / "values" / ".progress" / "test" / "settings.json").read_text())[
        "eval_dataset_name"
    ] == str(held_out)
    evaluate.main([*flags, str(tmp_path / "scores")])
    (numbers,) = json.loads((tmp_path / "scores" / "summary.json").read_text()).values()
    assert (numbers["num_prompts"], numbers["settings"]["data"]) == (3, held_out)


@pytest.mark.parametrize("flags", [["--dataset-name", "{}"], ["--dataset-name={}"], ["--dataset_name={}"]], ids=str)
def test_data_flags_may_have_dashes(tmp_path, flags):
    path = write_rows(tmp_path, [{"prompt": "1?", "answer": "1"}], "jsonl")
    rest = ["--model_name_or_path", str(TASK.model_path), "--reward_funcs", "accuracy_reward", "--bf16", "false"]
    arguments, *_ = parse_canon(*[flag.format(path) for flag in flags], *rest)
    assert (arguments.task, arguments.dataset_name) == (None, path)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (None, "is None"),
        ([], "is an empty conversation"),
        ([{"role": "user", "content": None}], "has a message without content at position 0"),
    ],
    ids=["none", "empty", "no content"],
)
@pytest.mark.parametrize("streaming", ["false", "true"])
@pytest.mark.parametrize("system_prompt", [[], ["--system_prompt", "Be brief."]], ids=["plain", "system prompt"])
def test_the_error_names_an_unusable_prompt(tmp_path, row, fault, streaming, system_prompt):
    sound = [{"role": "user", "content": "1?"}]
    rows = [{"prompt": prompt, "answer": "1"} for prompt in (sound, sound, row, sound)]
    path = write_rows(tmp_path, rows, "parquet")
    with pytest.raises(ValueError, match=rf"data\.parquet: the prompt of row 2 {fault}"):
        train, _ = load_data(of_file(path, "--dataset_streaming", streaming, *system_prompt), wants_eval=False)
        list(train)


def test_columns_that_collide_with_arguments_of_reward_functions(tmp_path):
    path = write_rows(tmp_path, [{"prompt": "1?", "answer": "1", "completions": "x", "log_extra": "y"}], "jsonl")
    with pytest.raises(
        ValueError, match=r"data.jsonl has the columns \['completions', 'log_extra'\], but reward func"
    ):
        load_data(of_file(path), wants_eval=False)


def test_a_file_has_no_configuration(tmp_path):
    path = write_rows(tmp_path, [{"prompt": "1?", "answer": "1"}], "jsonl")
    with pytest.raises(ValueError, match=r"data.jsonl' is a file, which has no configuration 'main'"):
        load_data(of_file(path, "--dataset_config", "main"), wants_eval=False)


def test_the_error_names_an_unknown_file_type(tmp_path):
    (tmp_path / "data.xlsx").touch()
    flags = ["--dataset_name", str(tmp_path / "data.xlsx"), "--model_name_or_path", "m"]
    arguments, *_ = parse_canon(*flags, "--reward_funcs", "accuracy_reward")
    with pytest.raises(ValueError, match=r"data.xlsx' is a file; its name must end in one of \['.jsonl', '.json'"):
        load_data(arguments, wants_eval=False)


def test_the_error_names_a_missing_column(tmp_path):
    datasets.Dataset.from_dict({"question": ["q"], "answer": ["a"]}).to_json(tmp_path / "data.jsonl")
    flags = ["--dataset_name", str(tmp_path / "data.jsonl"), "--model_name_or_path", "m"]
    arguments, *_ = parse_canon(*flags, "--reward_funcs", "accuracy_reward")
    with pytest.raises(
        ValueError, match=r"prompt_column='prompt' is not in .*data.jsonl; its columns are \['question'"
    ):
        load_data(arguments, wants_eval=False)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "ans')
    with pytest.raises(ValueError, match=r"rows\.jsonl' cannot be read as json: .*JSON"):
        load_data(RecipeArguments(dataset_name=str(path)), wants_eval=False)


def test_an_embedded_task_has_its_own_number_of_prompts():
    recipe = RecipeArguments(task="sums")
    assert (recipe.task_size("train"), recipe.task_size("test")) == (301, 99)
    recipe = RecipeArguments(task="sums", task_train_prompts=8, task_eval_prompts=4)
    assert (recipe.task_size("train"), recipe.task_size("test")) == (8, 4)

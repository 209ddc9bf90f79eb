"""Every recipe parses, validates and says what it promises; the script refuses what it cannot do."""

import json
import logging
from pathlib import Path

import datasets
import estimate_values
import evaluate
import pytest
import recipe
import train_astar_po
import train_canon
import yaml
from estimate_values import ValueArguments
from toy import TASK, base_model
from train_astar_po import ValueData
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.rewards import accuracy_reward

from canon_trl import AStarPOConfig, CANONConfig
from canon_trl.policy_losses import ClipCov, KLCov

ROOT = Path(__file__).parents[2]
ALL = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
EVALUATIONS = [path for path in ALL if "evaluate" in path.stem]
RECIPES = [path for path in ALL if path not in EVALUATIONS]
PAPER = {
    "canon_inter": {"canon_metric": "entropy", "canon_mu": 1.0, "canon_mu_schedule": "constant"},
    "canon_intra": {"canon_metric": "entropy", "canon_mu": 0.0, "canon_mu_schedule": "constant"},
    "inter_to_intra": {"canon_metric": "entropy", "canon_mu_schedule": "inter_to_intra"},
    "intra_to_inter": {"canon_metric": "entropy", "canon_mu_schedule": "intra_to_inter"},
    "cosine_inter_to_intra": {"canon_metric": "entropy", "canon_mu_schedule": "cosine_inter_to_intra"},
    "cosine_intra_to_inter": {"canon_metric": "entropy", "canon_mu_schedule": "cosine_intra_to_inter"},
    "canon_eff": {"canon_metric": "length", "canon_alpha": 0.96, "canon_mu": 0.5},
    "vllm_server": {"canon_metric": "entropy", "canon_mu": 1.0},
}


KINDS = {  # by an option that only its recipes have
    "beta2": (ValueData, AStarPOConfig),
    "num_samples": (ValueArguments,),
    "num_generations": (CANONConfig,),
}


def parse_canon(*flags):
    # bf16 is refused on a machine without it, before anything else is looked at
    return recipe.parse([*flags, "--use_cpu", "true"], CANONConfig, embedded=recipe.CONFIGS / "arithmetic.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses(path):
    given = yaml.safe_load(path.read_text())
    configs = next(configs for option, configs in KINDS.items() if option in given)
    cpu = [] if configs == (ValueArguments,) else ["--use_cpu", "true"]
    parts = recipe.parse(["--config", str(path), *cpu], *configs, embedded=path)
    functions = recipe.reward_functions(parts[0], 256)
    assert functions and all(callable(function) for function in functions)
    for name, value in given.items():
        holder = next(part for part in parts if hasattr(part, name))
        if name != "report_to":
            assert getattr(holder, name) == value, name


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_evaluation_parses(path):
    given = yaml.safe_load(path.read_text())
    entries = given.pop("benchmarks", [{}])
    benchmarks, _, model = evaluate.read_benchmarks(["--config", str(path)])
    for entry, benchmark in zip(entries, benchmarks, strict=True):
        functions = recipe.reward_functions(benchmark.recipe, benchmark.options.max_completion_length)
        assert functions and all(callable(function) for function in functions)
        assert benchmark.name == entry.pop("name", benchmark.recipe.task)
        for name, value in (given | entry).items():
            holder = next(part for part in (benchmark.recipe, benchmark.options, model) if hasattr(part, name))
            assert getattr(holder, name) == value, name


def test_the_mathematics_benchmarks():
    """Names, splits and columns as their cards have them."""
    benchmarks, _, _ = evaluate.read_benchmarks(["--config", str(recipe.CONFIGS / "evaluate_math.yaml")])
    names = ("dataset_name", "dataset_test_split", "prompt_column", "answer_column")
    assert {each.name: tuple(getattr(each.recipe, name) for name in names) for each in benchmarks} == {
        "MATH-500": ("HuggingFaceH4/MATH-500", "test", "problem", "answer"),
        "AIME24": ("HuggingFaceH4/aime_2024", "train", "problem", "answer"),
        "AIME25": ("math-ai/aime25", "test", "problem", "answer"),
        "AMC23": ("math-ai/amc23", "test", "question", "answer"),
        "Minerva": ("math-ai/minervamath", "test", "question", "answer"),
        "OlympiadBench": ("math-ai/olympiadbench", "test", "question", "final_answer"),
        "Omni-MATH": ("KbsdJames/Omni-MATH", "test", "problem", "answer"),
    }
    assert {each.options.num_samples for each in benchmarks if "AIME" in each.name} == {32}
    assert all(each.recipe.answer_template == "${answer}$" for each in benchmarks)


@pytest.mark.parametrize(
    ("answers", "template", "want"),
    [
        (["3\\sqrt{13}", "p - q"], "${answer}$", ["$3\\sqrt{13}$", "$p - q$"]),
        ([["$1$", "$2$"], ["7"]], "{answer}", ["$1$, $2$", "7"]),
    ],
)
def test_solutions_are_made_of_answers(tmp_path, answers, template, want):
    datasets.Dataset.from_dict({"prompt": ["a", "b"], "answer": answers}).to_json(tmp_path / "data.jsonl")
    flags = ["--dataset_name", str(tmp_path / "data.jsonl"), "--model_name_or_path", "m"]
    arguments, *_ = parse_canon(*flags, "--reward_funcs", "accuracy_reward", "--answer_template", template)
    train, _ = recipe.load_data(arguments, wants_eval=False)
    assert train["solution"][:] == want


ANSWERS = ["2", None, "", " ", "3"]
SOLUTIONS = ["$2$", None, None, None, "$3$"]


def write_rows(path, rows, form):
    """Rows as a file of that form, its path as text."""
    file = path / f"data.{form}"
    table = datasets.Dataset.from_list(rows)
    {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[form](file)
    return str(file)


def of_file(path, *flags):
    """The recipe of a file with one reward function."""
    given = ["--dataset_name", str(path), "--model_name_or_path", str(TASK.model_path)]
    return parse_canon(*given, "--reward_funcs", "accuracy_reward", *flags)[0]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_missing_answer_stays_missing(tmp_path, form, caplog):
    path = write_rows(tmp_path, [{"prompt": f"{i}?", "answer": answer} for i, answer in enumerate(ANSWERS)], form)
    with caplog.at_level(logging.WARNING):
        train, _ = recipe.load_data(of_file(path, "--answer_template", "${answer}$"), wants_eval=False)
    assert train["solution"][:] == SOLUTIONS
    assert "3 of 5 prompts have no answer in answer_column='answer', the first in row 1" in caplog.text


@pytest.mark.parametrize(
    ("answers", "want"),
    [
        ([["1", None], ["1", "2"], [], None], [None, "1, 2", None, None]),
        ([float("nan"), 2.0, 0.5, None], [None, "2", "0.5", None]),
        ([7, None, 0], ["7", None, "0"]),
        ([None] * 1500 + ["1"], [None] * 1500 + ["1"]),  # no type can be told of the first ones
    ],
    ids=["lists", "numbers", "whole numbers", "the first thousand"],
)
def test_missing_answers_of_every_type(tmp_path, answers, want):
    path = write_rows(tmp_path, [{"prompt": "1 + 1?", "answer": answer} for answer in answers], "parquet")
    train, _ = recipe.load_data(of_file(path), wants_eval=False)
    assert train["solution"][:] == want


@pytest.mark.parametrize("name", ["accuracy_reward", "reasoning_accuracy_reward"])
def test_a_response_to_a_prompt_without_an_answer_is_not_scored(name):
    texts = [r"so $3$ </think> \boxed{3}", r"so $3$ </think> \boxed{4}", "without an end"]
    responses = [[{"role": "assistant", "content": text}] for text in texts]
    assert recipe.REWARDS[name](completions=responses, solution=[None] * 3) == [None] * 3
    assert recipe.REWARDS[name](completions=responses, solution=["$3$"] * 3) == [1.0, 0.0, 0.0]


def chat_model(folder):
    """The embedded model with a chat template; the path as text."""
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    tokenizer.save_pretrained(folder)
    base_model().save_pretrained(folder)
    return str(folder)


def judged(completions, solution, **kwargs):
    """Right where a response ends in the answer; without one it cannot be judged."""
    texts = [completion[0]["content"] for completion in completions]
    return [None if s is None else float(text.endswith(s)) for text, s in zip(texts, solution, strict=True)]


def test_values_of_prompts_that_cannot_be_judged_are_left_out(tmp_path, capsys):
    rows = TASK.dataset("train", 6).to_list()
    rows[2]["answer"] = rows[5]["answer"] = None
    flags = ["--dataset_name", write_rows(tmp_path, rows, "jsonl"), "--reward_funcs", f"{__name__}:judged"]
    flags += ["--model_name_or_path", chat_model(tmp_path / "model"), "--output_dir", str(tmp_path / "values")]
    estimate_values.main([*flags, "--num_samples", "4", "--max_completion_length", "12", "--include_test", "false"])
    values = datasets.load_dataset(str(tmp_path / "values"))["train"]
    assert values["prompt"][:] == [[{"role": "user", "content": rows[i]["prompt"]}] for i in (0, 1, 3, 4)]
    assert "train: 2 of 6 prompts are left out: none of their responses was scored, the first is prompt 2" in (
        capsys.readouterr().out
    )


def test_values_of_no_prompt_at_all(tmp_path):
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


RUN = ["--task", "arithmetic", "--task_train_prompts", "16", "--task_eval_prompts", "8", "--max_steps", "2"]
RUN += ["--num_generations", "4", "--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "8"]
RUN += ["--max_completion_length", "12", "--learning_rate", "1e-3", "--report_to", "none", "--use_cpu", "true"]
RUN += ["--bf16", "false", "--save_strategy", "no", "--eval_strategy", "steps", "--disable_tqdm", "true"]

evaluated = []


def on_training_prompts_alone(completions, prompts, answer, **kwargs):
    train = set(TASK.dataset("train", 16)["prompt"])
    rewards = TASK.reward(completions, answer=answer)
    return [reward if prompt in train else None for prompt, reward in zip(prompts, rewards, strict=True)]


def fails_on_the_trained_model(completions, prompts, answer, **kwargs):
    if set(prompts) & set(TASK.dataset("test", 8)["prompt"]):
        evaluated.append(prompts)
        if len(evaluated) > 8 * 4 / 8:  # responses in batches of 8: those before the first step are through
            raise ConnectionError("the judge is gone")
    return TASK.reward(completions, answer=answer)


def moved_from_the_base_model(folder):
    trained = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return max((trained[name] - value).abs().max().item() for name, value in base_model().state_dict().items())


@pytest.mark.parametrize("delay", ["0", "9"], ids=["by the trainer's last evaluation", "by one after training"])
def test_held_out_prompts_that_are_not_scored_lose_nothing(tmp_path, delay, capsys):
    flags = ["--output_dir", str(tmp_path), "--reward_funcs", f"{__name__}:on_training_prompts_alone"]
    train_canon.main([*RUN, *flags, "--eval_delay", delay])
    assert "on held-out prompts: not scored before, not scored after training" in capsys.readouterr().out
    assert moved_from_the_base_model(tmp_path) > 1e-4
    assert {"README.md", "metrics.csv", "curves.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("delay", ["0", "9"], ids=["by the trainer's last evaluation", "by one after training"])
def test_an_evaluation_that_fails_does_not_lose_the_model(tmp_path, delay):
    evaluated.clear()
    flags = ["--output_dir", str(tmp_path), "--reward_funcs", f"{__name__}:fails_on_the_trained_model"]
    with pytest.raises(ConnectionError, match="the judge is gone"):
        train_canon.main([*RUN, *flags, "--eval_delay", delay])
    assert moved_from_the_base_model(tmp_path) > 1e-4
    assert (tmp_path / "README.md").exists() == (delay == "9")


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_setting(name):
    path = ROOT / "examples" / "configs" / f"qwen2.5_math_7b_{name}.yaml"
    arguments, training, model = parse_canon("--config", str(path))
    for option, value in PAPER[name].items():
        assert getattr(training, option) == value, option
    gpus, responses = 8, 16
    a_step = gpus * training.per_device_train_batch_size * training.gradient_accumulation_steps
    a_rollout = gpus * training.per_device_train_batch_size * training.steps_per_generation
    assert a_rollout == 512 * responses
    assert a_rollout // a_step == 16
    assert training.num_generations == responses
    assert (training.learning_rate, training.warmup_steps, training.weight_decay) == (1e-6, 5, 0.1)
    assert (training.epsilon, training.epsilon_high, training.delta, training.beta) == (0.2, 0.28, 3.0, 0.0)
    length = 3072 if name == "canon_eff" else 8192
    assert (training.max_completion_length, training.vllm_max_model_length) == (length, 2048 + length)
    assert (training.temperature, training.loss_type, training.scale_rewards) == (1.0, "dr_grpo", "none")
    assert model.model_name_or_path == "Qwen/Qwen2.5-Math-7B"
    assert recipe.reward_functions(arguments, training.max_completion_length) == [accuracy_reward]


METHODS = {
    "clip_higher": ("grpo", None, "dapo", (0.2, 0.28), True),
    "clip_cov": (
        "grpo",
        ClipCov(epsilon_low=1.0, epsilon_high=1.0),
        "dapo",
        (1, 1),
        True,
    ),
    "kl_cov": ("grpo", KLCov(fraction=0.002, coef=1.0), "dapo", (0.2, 0.28), True),
    "canon_kl_cov": ("canon", KLCov(fraction=0.002, coef=1.0), "dr_grpo", (0.2, 0.28), False),
    "a_grae": ("a_grae", None, "grpo", (0.2, 0.28), False),
    "a_grae_dr_grpo": ("a_grae", None, "dr_grpo", (0.2, 0.28), False),
    "a_grae_dapo": ("a_grae", None, "dapo", (0.2, 0.28), True),
    "a_grae_clip_cov": ("a_grae", ClipCov(epsilon_low=1.0, epsilon_high=1.0), "dapo", (1, 1), False),
    "w_reinforce": ("w_reinforce", None, "dr_grpo", (0.2, 0.28), False),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_other_methods(name, caplog):
    path = ROOT / "examples" / "configs" / f"qwen2.5_math_7b_{name}.yaml"
    _, training, _ = parse_canon("--config", str(path))
    clip = (training.epsilon, training.epsilon_high)
    made = (training.advantage_estimator, training.make_policy_loss(), training.loss_type, clip)
    assert (*made, training.dynamic_sampling) == METHODS[name]
    assert training.advantage_estimator_kwargs == {
        "a_grae": {"scale": name != "a_grae_dr_grpo", "attenuation": 1.0},
        "w_reinforce": {"positive_weight": 0.1},
    }.get(training.advantage_estimator, {})
    assert training.steps_per_generation == 16 * training.gradient_accumulation_steps, "several updates a rollout"
    assert "plain policy gradient" not in caplog.text


@pytest.mark.parametrize("name", ["qwen2.5_1.5b_astar_po", "arithmetic_astar_po"])
def test_astar_po(name):
    path = ROOT / "examples" / "configs" / f"{name}.yaml"
    _, _, training, _ = recipe.parse(
        ["--config", str(path), "--use_cpu", "true"], ValueData, AStarPOConfig, embedded=path
    )
    assert (training.beta1, training.beta2, training.num_generations) == (0.5, 1e-3, 1)
    assert training.filter_all_incorrect


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_samples", "0"], "num_samples=0 must be at least 1"),
        (["--temperature", "0"], "temperature=0.0 must be positive"),
        (["--beta1", "-1"], "beta1=-1.0 must be finite and at least 0"),
        (["--top_p", "1.7"], r"top_p=1.7 must lie in \(0, 1\]"),
        (["--top_k", "-3"], "top_k=-3 must be at least 0"),
        (["--vllm_kwargs", '{"a": 1}'], "would be ignored: use_vllm is False"),
    ],
)
def test_bad_flags_of_the_estimation(flags, message):
    with pytest.raises(ValueError, match=message):
        recipe.parse(flags, ValueArguments, embedded=recipe.CONFIGS / "arithmetic_values.yaml")


@pytest.mark.parametrize("flags", [["--task", "arithmetic"], ["--dataset_name", "x", "--values", "y"]])
def test_astar_po_needs_values_with_a_task_and_only_then(flags):
    rest = ["--model_name_or_path", "m", "--reward_funcs", "accuracy_reward", "--use_cpu", "true"]
    with pytest.raises(ValueError, match="an embedded task needs the folder of its values, and a dataset_name brings"):
        train_astar_po.main([*flags, *rest])


def test_values_that_are_nowhere(tmp_path):
    flags = ["--task", "arithmetic", "--values", str(tmp_path / "none"), "--use_cpu", "true", "--bf16", "false"]
    with pytest.raises(ValueError, match=r"none': there is no such folder; estimate_values\.py writes it"):
        train_astar_po.main(flags)


def test_no_arguments_is_the_embedded_task():
    arguments, training, model = parse_canon()
    assert (arguments.task, model.model_name_or_path) == ("arithmetic", None)
    assert (training.max_steps, training.canon_metric) == (80, "entropy")
    assert parse_canon("--canon_metric", "length")[1].canon_metric == "length"


ON_FILE = ["--model_name_or_path", str(TASK.model_path), "--reward_funcs", "accuracy_reward", "--use_cpu", "true"]
ON_FILE += ["--bf16", "false"]
ON_HUB = [*ON_FILE, "--dataset_name", "someone/data"]


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--task", "poetry"], ValueError, r"task='poetry' must be one of \['arithmetic', 'verbosity', 'countdown'\]"),
        (["--task", "arithmetic", "--dataset_name", "x"], ValueError, "give exactly one of them"),
        (["--dataset_name", "x", "--model_name_or_path", "m"], ValueError, "reward_funcs is empty"),
        (["--dataset_name", "x", "--reward_funcs", "accuracy_reward"], ValueError, "model_name_or_path is missing"),
        (["--answer_template", "$$"], ValueError, r"answer_template='\$\$' must contain '\{answer\}'"),
        (["--canon_mu", "2"], ValueError, r"canon_mu=2.0 must lie in \[0, 1\]"),
        (
            ["--model_name_or_path", "outputs/canon/checkpoint-80"],
            ValueError,
            "model_name_or_path='outputs/canon/checkpoint-80': there is no such folder, and a model on the Hub is nam",
        ),
        (["--reward_funcs", "model:./judge"], ValueError, "reward_funcs='./judge': there is no such folder"),
        (
            [*ON_FILE, "--dataset_name", "no/train.jsonl"],
            ValueError,
            "dataset_name='no/train.jsonl': there is no such",
        ),
        (
            [*ON_FILE, "--dataset_name", "/no/such/folder"],
            ValueError,
            "dataset_name='/no/such/folder': there is no su",
        ),
        ([*ON_HUB, "--eval_dataset_name", "x.csv"], ValueError, "eval_dataset_name='x.csv': there is no such file"),
        (
            [*ON_HUB, "--system_prompt", "None"],
            ValueError,
            "system_prompt='None' is a text; leave it out, or write nul",
        ),
        (
            [*ON_HUB, "--soft_overlong_cache", "8"],
            ValueError,
            "soft_overlong_cache=8 would be ignored with .*accuracy",
        ),
        (["--ignore_bias_buffers", "true"], ValueError, "ignore_bias_buffers=True would be ignored"),
        (
            ["--answer_template", "${answer}$", "--eval_dataset_name", "x"],
            ValueError,
            r"eval_dataset_name='x', answer_template='\${answer}\$' would be ignored with task='arithmetic'",
        ),
    ],
)
def test_bad_flags(flags, error, message):
    with pytest.raises(error, match=message):
        parse_canon(*flags)


def test_unknown_reward():
    arguments, training, _ = parse_canon("--task", "arithmetic", "--reward_funcs", "accurate")
    with pytest.raises(ValueError, match="reward_funcs has 'accurate'; choose from"):
        recipe.reward_functions(arguments, training.max_completion_length)


def test_rewards_by_path_and_model():
    names = ["canon_trl.tasks.arithmetic:accuracy", "model:some/reward-model", "soft_overlong_punishment"]
    flags = ["--task", "arithmetic", "--use_cpu", "true", "--max_completion_length", "256"]
    arguments, training, _ = parse_canon(*flags, "--soft_overlong_cache", "128", "--reward_funcs", *names)
    accuracy, reward_model, overlong = recipe.reward_functions(arguments, training.max_completion_length)
    assert accuracy(["#1"], answer=["1"]) == [1.0]
    assert reward_model == "some/reward-model"
    # linear from 0 at 256 - 128 tokens to -1 at 256
    assert overlong(completion_ids=[[0] * 100, [0] * 192, [0] * 300]) == [0.0, -0.5, -1.0]


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
    train, held_out = recipe.load_data(arguments, wants_eval=False)
    assert held_out is None
    assert train[0]["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 1?"},
    ]
    assert train[0]["solution"] == "2"


def test_a_system_prompt_precedes_conversations_that_have_none(tmp_path):
    asked = [{"role": "user", "content": "1 + 1?"}]
    told = [{"role": "system", "content": "Be verbose."}, *asked]
    datasets.Dataset.from_list([{"prompt": prompt, "answer": "2"} for prompt in (asked, told)]).to_json(
        tmp_path / "data.jsonl"
    )
    flags = ["--dataset_name", str(tmp_path / "data.jsonl"), "--model_name_or_path", "m"]
    arguments, *_ = parse_canon(*flags, "--reward_funcs", "accuracy_reward", "--system_prompt", "Be brief.")
    train, _ = recipe.load_data(arguments, wants_eval=False)
    assert train["prompt"][:] == [[{"role": "system", "content": "Be brief."}, *asked], told]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_held_out_prompts_in_a_file_of_their_own(tmp_path, form, streaming):
    (tmp_path / "held out").mkdir()
    train = write_rows(tmp_path, [{"prompt": "1 + 1?", "answer": "2"}], form)
    held_out = write_rows(tmp_path / "held out", [{"prompt": "2 + 2?", "answer": "4"}], form)
    flags = ["--eval_dataset_name", held_out, "--dataset_streaming", streaming]
    recipe_of_both = of_file(train, *flags)
    both = recipe.load_data(recipe_of_both, wants_eval=True)
    kind = datasets.IterableDataset if streaming == "true" else datasets.Dataset
    assert [type(data) for data in both] == [kind] * 2
    assert [next(iter(data))["solution"] for data in both] == ["2", "4"]
    assert next(iter(recipe.load_held_out(recipe_of_both)))["solution"] == "4"
    assert next(iter(recipe.load_held_out(of_file(train, *flags[2:]))))["solution"] == "2"
    with pytest.raises(ValueError, match=r"eval_dataset_name='.*' would be ignored: no held-out prompts are wanted"):
        recipe.load_data(recipe_of_both, wants_eval=False)
    with pytest.raises(ValueError, match=r"has no split 'test'; it has \['train'\]; eval_dataset_name names"):
        recipe.load_data(of_file(train, *flags[2:]), wants_eval=True)


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
    _, held_out = recipe.load_data(of_file(train, *flags), wants_eval=True)
    assert held_out["solution"][:] == ["2"]


def test_a_file_that_is_streamed_is_trained_on(tmp_path):
    """From the rows of a file, evaluated on those of another, with a model that is told to be streamed to."""
    (tmp_path / "held out").mkdir()
    data = write_rows(tmp_path, TASK.dataset("train", 16).to_list(), "jsonl")
    held_out = write_rows(tmp_path / "held out", TASK.dataset("test", 4).to_list(), "jsonl")
    flags = ["--dataset_name", data, "--dataset_streaming", "true", "--eval_dataset_name", held_out]
    flags += ["--model_name_or_path", chat_model(tmp_path / "model"), "--reward_funcs", f"{__name__}:judged"]
    trainer = train_canon.main([*RUN[6:], "--max_steps", "2", "--output_dir", str(tmp_path / "trained"), *flags])
    assert trainer.state.global_step == 2
    history = json.loads((tmp_path / "trained" / "metrics.json").read_text())
    assert [entry["step"] for entry in history if "eval_rewards/judged/mean" in entry] == [0, 2]
    assert moved_from_the_base_model(tmp_path / "trained") > 1e-4


def test_values_and_evaluation_take_the_held_out_file(tmp_path):
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


@pytest.mark.parametrize("config", ["--config={}", "--config {}"])
def test_a_recipe_is_read_however_it_is_named(tmp_path, config):
    (tmp_path / "run.yaml").write_text("task: countdown\ncanon_mu: 0.25\nbf16: false\n")
    arguments, training, _ = parse_canon(*config.format(tmp_path / "run.yaml").split())
    assert (arguments.task, training.canon_mu, training.canon_metric) == ("countdown", 0.25, "entropy")
    with pytest.raises(ValueError, match="--config is given without a value"):
        recipe.parse(["--task", "arithmetic", "--config"], CANONConfig, embedded=Path())


@pytest.mark.parametrize("flags", [["--dataset-name", "{}"], ["--dataset-name={}"], ["--dataset_name={}"]], ids=str)
def test_data_may_be_named_with_dashes(tmp_path, flags):
    path = write_rows(tmp_path, [{"prompt": "1?", "answer": "1"}], "jsonl")
    rest = ["--model_name_or_path", str(TASK.model_path), "--reward_funcs", "accuracy_reward", "--bf16", "false"]
    arguments, *_ = parse_canon(*[flag.format(path) for flag in flags], *rest)
    assert (arguments.task, arguments.dataset_name) == (None, path)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (None, "is None"),
        ([], "is an empty conversation"),
        ([{"role": "user", "content": None}], "has a message without content in place 0"),
    ],
    ids=["none", "empty", "no content"],
)
@pytest.mark.parametrize("streaming", ["false", "true"])
@pytest.mark.parametrize("system_prompt", [[], ["--system_prompt", "Be brief."]], ids=["plain", "system prompt"])
def test_a_prompt_that_is_none_is_named(tmp_path, row, fault, streaming, system_prompt):
    sound = [{"role": "user", "content": "1?"}]
    rows = [{"prompt": prompt, "answer": "1"} for prompt in (sound, sound, row, sound)]
    path = write_rows(tmp_path, rows, "parquet")
    with pytest.raises(ValueError, match=rf"data\.parquet: the prompt of row 2 {fault}"):
        train, _ = recipe.load_data(of_file(path, "--dataset_streaming", streaming, *system_prompt), wants_eval=False)
        list(train)


def test_columns_that_reward_functions_could_not_get(tmp_path):
    path = write_rows(tmp_path, [{"prompt": "1?", "answer": "1", "completions": "x", "log_extra": "y"}], "jsonl")
    with pytest.raises(
        ValueError, match=r"data.jsonl has the columns \['completions', 'log_extra'\], but reward func"
    ):
        recipe.load_data(of_file(path), wants_eval=False)


def test_a_file_has_no_configuration(tmp_path):
    path = write_rows(tmp_path, [{"prompt": "1?", "answer": "1"}], "jsonl")
    with pytest.raises(ValueError, match=r"data.jsonl' is a file, which has no configuration 'main'"):
        recipe.load_data(of_file(path, "--dataset_config", "main"), wants_eval=False)


def test_an_unknown_kind_of_file_is_named(tmp_path):
    (tmp_path / "data.xlsx").touch()
    flags = ["--dataset_name", str(tmp_path / "data.xlsx"), "--model_name_or_path", "m"]
    arguments, *_ = parse_canon(*flags, "--reward_funcs", "accuracy_reward")
    with pytest.raises(ValueError, match=r"data.xlsx' is a file that must end in one of \['.jsonl', '.json'"):
        recipe.load_data(arguments, wants_eval=False)


def test_missing_math_verify_is_named(monkeypatch):
    monkeypatch.setattr(recipe, "find_spec", lambda name: None)
    flags = ["--dataset_name", "x", "--model_name_or_path", "m", "--reward_funcs", "accuracy_reward"]
    with pytest.raises(ImportError, match=r"'accuracy_reward', which needs math-verify; install canon-trl\[math\]"):
        parse_canon(*flags)


def test_a_missing_column_is_named(tmp_path):
    datasets.Dataset.from_dict({"question": ["q"], "answer": ["a"]}).to_json(tmp_path / "data.jsonl")
    flags = ["--dataset_name", str(tmp_path / "data.jsonl"), "--model_name_or_path", "m"]
    arguments, *_ = parse_canon(*flags, "--reward_funcs", "accuracy_reward")
    with pytest.raises(
        ValueError, match=r"prompt_column='prompt' is not in .*data.jsonl; its columns are \['question'"
    ):
        recipe.load_data(arguments, wants_eval=False)

"""Every recipe parses and has the settings that it promises; the script rejects what it cannot do."""

import pytest
from recipe_runs import RUN, moved_from_the_base_model, parse_canon
from toy import TASK
from trl.rewards import accuracy_reward

from canon_trl import AStarPOConfig, CANONConfig
from canon_trl.cli import train
from canon_trl.cli.arguments import parse
from canon_trl.cli.benchmarks import read_benchmarks
from canon_trl.cli.rewards import add_noise, reward_functions
from canon_trl.cli.train import AStarPOArguments, TrainArguments
from canon_trl.cli.values import ValueArguments
from canon_trl.recipes import read_recipe, recipe_names

EVALUATIONS = [name for name in recipe_names() if "evaluate" in name]
RECIPES = [name for name in recipe_names() if name not in EVALUATIONS]
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


KINDS = {  # each kind is recognised by an option that only its recipes have
    "beta2": (AStarPOArguments, AStarPOConfig),
    "num_samples": (ValueArguments,),
    "num_generations": (TrainArguments, CANONConfig),
}


@pytest.mark.parametrize("recipe_name", RECIPES)
def test_recipe_parses(recipe_name):
    given = read_recipe(recipe_name)
    configs = next(configs for option, configs in KINDS.items() if option in given)
    cpu = [] if configs == (ValueArguments,) else ["--use_cpu", "true"]
    parts = parse(["--config", recipe_name, *cpu], *configs, command="", embedded="")
    functions = reward_functions(parts[0], 256)
    assert functions and all(callable(function) for function in functions)
    for name, value in given.items():
        holder = next(part for part in parts if hasattr(part, name))
        if name != "report_to":
            assert getattr(holder, name) == value, name


@pytest.mark.parametrize("recipe_name", EVALUATIONS)
def test_evaluation_parses(recipe_name):
    given = read_recipe(recipe_name)
    entries = given.pop("benchmarks", [{}])
    benchmarks, _, model = read_benchmarks(["--config", recipe_name])
    for entry, benchmark in zip(entries, benchmarks, strict=True):
        functions = reward_functions(benchmark.recipe, benchmark.options.max_completion_length)
        assert functions and all(callable(function) for function in functions)
        assert benchmark.name == entry.pop("name", benchmark.recipe.task)
        for name, value in (given | entry).items():
            holder = next(part for part in (benchmark.recipe, benchmark.options, model) if hasattr(part, name))
            assert getattr(holder, name) == value, name


def test_the_mathematics_benchmarks():
    """Names, splits and columns are those of the dataset cards."""
    benchmarks, _, _ = read_benchmarks(["--config", "evaluate_math"])
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


evaluated = []


def on_training_prompts_alone(completions, prompts, answer, **kwargs):
    train = set(TASK.dataset("train", 16)["prompt"])
    rewards = TASK.reward(completions, answer=answer)
    return [reward if prompt in train else None for prompt, reward in zip(prompts, rewards, strict=True)]


def fails_on_the_trained_model(completions, prompts, answer, **kwargs):
    if set(prompts) & set(TASK.dataset("test", 8)["prompt"]):
        evaluated.append(prompts)
        if len(evaluated) > 8 * 4 / 8:  # in batches of 8, after the evaluation before the first step
            raise ConnectionError("the judge is gone")
    return TASK.reward(completions, answer=answer)


@pytest.mark.parametrize(
    "delay", ["0", "9"], ids=["in the trainer's last evaluation", "in an evaluation after training"]
)
def test_unscored_held_out_prompts_do_not_lose_the_run(tmp_path, delay, capsys):
    flags = ["--output_dir", str(tmp_path), "--reward_funcs", f"{__name__}:on_training_prompts_alone"]
    train.main([*RUN, *flags, "--eval_delay", delay])
    assert "on held-out prompts: not scored before, not scored after training" in capsys.readouterr().out
    assert moved_from_the_base_model(tmp_path) > 1e-4
    assert {"README.md", "metrics.csv", "curves.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "delay", ["0", "9"], ids=["in the trainer's last evaluation", "in an evaluation after training"]
)
def test_an_evaluation_that_fails_does_not_lose_the_model(tmp_path, delay):
    evaluated.clear()
    flags = ["--output_dir", str(tmp_path), "--reward_funcs", f"{__name__}:fails_on_the_trained_model"]
    with pytest.raises(ConnectionError, match="the judge is gone"):
        train.main([*RUN, *flags, "--eval_delay", delay])
    assert moved_from_the_base_model(tmp_path) > 1e-4
    assert (tmp_path / "README.md").exists() == (delay == "9")


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_setting(name):
    arguments, training, model = parse_canon("--config", f"qwen2.5_math_7b_{name}")
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
    assert reward_functions(arguments, training.max_completion_length) == [accuracy_reward]


CLIP_COV = {"ratio": 2e-4, "low": 1.0, "high": 5.0, "scope": "micro_batch"}
KL_COV = {"fraction": 0.002, "coef": 1.0, "scope": "micro_batch"}
METHODS = {
    "clip_higher": ("grpo", None, "dapo", (0.2, 0.28), True),
    "clip_cov": ("grpo", CLIP_COV, "dapo", (1, 1), True),
    "kl_cov": ("grpo", KL_COV, "dapo", (0.2, 0.28), True),
    "canon_kl_cov": ("canon", KL_COV, "dr_grpo", (0.2, 0.28), False),
    "a_grae": ("a_grae", None, "grpo", (0.2, 0.28), False),
    "a_grae_dr_grpo": ("a_grae", None, "dr_grpo", (0.2, 0.28), False),
    "a_grae_dapo": ("a_grae", None, "dapo", (0.2, 0.28), True),
    "a_grae_clip_cov": ("a_grae", CLIP_COV, "dapo", (1, 1), False),
    "w_reinforce": ("w_reinforce", None, "dr_grpo", (0.2, 0.28), False),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_other_methods(name, caplog):
    _, training, _ = parse_canon("--config", f"qwen2.5_math_7b_{name}")
    clip = (training.epsilon, training.epsilon_high)
    policy_loss = training.make_policy_loss()
    options = policy_loss and policy_loss.all_options
    made = (training.advantage_estimator, options, training.loss_type, clip)
    assert (*made, training.dynamic_sampling) == METHODS[name]
    assert training.advantage_estimator_kwargs == {
        "a_grae": {"scale": name != "a_grae_dr_grpo", "attenuation": 1.0},
        "w_reinforce": {"positive_weight": 0.1},
    }.get(training.advantage_estimator, {})
    assert training.steps_per_generation == 16 * training.gradient_accumulation_steps, "several updates per rollout"
    assert "plain policy gradient" not in caplog.text


@pytest.mark.parametrize("name", ["qwen2.5_1.5b_astar_po", "arithmetic_astar_po"])
def test_astar_po(name):
    flags = ["--config", name, "--use_cpu", "true"]
    _, _, training, _ = parse(flags, AStarPOArguments, AStarPOConfig, command="", embedded="")
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
        parse(flags, ValueArguments, command="", embedded="arithmetic_values")


@pytest.mark.parametrize("flags", [["--task", "arithmetic"], ["--dataset_name", "x", "--values", "y"]])
def test_astar_po_needs_values_with_a_task_and_only_then(flags):
    rest = ["--model_name_or_path", "m", "--reward_funcs", "accuracy_reward", "--use_cpu", "true"]
    with pytest.raises(ValueError, match="an embedded task needs the folder of its values, and a dataset has them"):
        train.main(["--trainer", "astar_po", *flags, *rest])


def test_missing_values_file(tmp_path):
    flags = ["--task", "arithmetic", "--values", str(tmp_path / "none"), "--use_cpu", "true", "--bf16", "false"]
    with pytest.raises(ValueError, match=r"none': there is no such folder; `canon-trl values` writes"):
        train.main(["--trainer", "astar_po", *flags])


def test_without_arguments_the_embedded_task_is_trained():
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
        (
            ["--task", "poetry"],
            ValueError,
            r"task='poetry' must be one of \['arithmetic', 'verbosity', 'countdown', ",
        ),
        (["--reward_flip", "0.5"], ValueError, r"reward_flip=0.5 must lie in \[0, 0.5\)"),
        (["--task", "arithmetic", "--dataset_name", "x"], ValueError, "give exactly one of them"),
        (["--dataset_name", "x", "--model_name_or_path", "m"], ValueError, "reward_funcs is empty"),
        (["--dataset_name", "x", "--reward_funcs", "accuracy_reward"], ValueError, "model_name_or_path is missing"),
        (["--answer_template", "$$"], ValueError, r"answer_template='\$\$' must contain '\{answer\}'"),
        (["--canon_mu", "2"], ValueError, r"canon_mu=2.0 must lie in \[0, 1\]"),
        (
            ["--model_name_or_path", "outputs/canon/checkpoint-80"],
            ValueError,
            "model_name_or_path='outputs/canon/checkpoint-80': there is no such folder, and a model on the Hub has",
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
        reward_functions(arguments, training.max_completion_length)


def test_rewards_by_path_and_model():
    names = ["canon_trl.tasks.arithmetic:accuracy", "model:some/reward-model", "soft_overlong_punishment"]
    flags = ["--task", "arithmetic", "--use_cpu", "true", "--max_completion_length", "256"]
    arguments, training, _ = parse_canon(*flags, "--soft_overlong_cache", "128", "--reward_funcs", *names)
    accuracy, reward_model, overlong = reward_functions(arguments, training.max_completion_length)
    assert accuracy(["#1"], answer=["1"]) == [1.0]
    assert reward_model == "some/reward-model"
    # linear from 0 at 256 - 128 tokens to -1 at 256
    assert overlong(completion_ids=[[0] * 100, [0] * 192, [0] * 300]) == [0.0, -0.5, -1.0]


def test_a_noisy_verifier_trains_on_flipped_rewards_and_logs_the_true_ones(tmp_path):
    trainer = train.main([*RUN, "--output_dir", str(tmp_path), "--reward_flip", "0.35", "--logging_steps", "1"])
    assert trainer.reward_func_names == ["accuracy", "true_accuracy"]
    assert trainer.reward_weights.tolist() == [1.0, 0.0]
    training = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [entry["reward"] for entry in training] == [entry["rewards/accuracy/mean"] for entry in training]
    assert [entry["reward"] for entry in training] != [entry["rewards/true_accuracy/mean"] for entry in training]
    assert trainer.accuracy_name == "true_accuracy"


@pytest.mark.parametrize(
    ("given", "accuracy", "names", "weights"),
    [
        (None, None, ["accuracy", "true_accuracy"], [1.0, 0.0]),
        (["canon_trl.tasks.arithmetic:accuracy"], "accuracy", ["accuracy", "true_accuracy"], [1.0, 0.0]),
        (
            ["think_format_reward", "canon_trl.tasks.arithmetic:accuracy"],
            "accuracy",
            ["think_format_reward", "accuracy", "true_accuracy"],
            [1.0, 1.0, 0.0],
        ),
    ],
)
def test_the_accuracy_reward_is_flipped(given, accuracy, names, weights):
    flags = ["--task", "arithmetic", "--reward_flip", "0.35"] + (["--reward_funcs", *given] if given else [])
    arguments, training, _ = parse_canon(*flags)
    functions = reward_functions(arguments, training.max_completion_length)
    noisy, found = add_noise(arguments, functions, None, seed=1, accuracy=accuracy)
    assert [function.__name__ for function in noisy] == names and found == weights
    columns = {"prompts": ["1"] * 100, "completions": ["#1"] * 100, "completion_ids": [[5]] * 100}
    index = names.index("accuracy")
    assert 15 < noisy[index](**columns, answer=["1"] * 100).count(0.0) < 55
    assert noisy[-1](**columns, answer=["1"] * 100) == [1.0] * 100
    with pytest.raises(ValueError, match="accuracy_reward='precision' is not one of the reward functions"):
        add_noise(arguments, functions, None, seed=1, accuracy="precision")


@pytest.mark.parametrize("config", ["--config={}", "--config {}"])
def test_the_config_flag_may_be_written_in_several_ways(tmp_path, config):
    (tmp_path / "run.yaml").write_text("task: countdown\ncanon_mu: 0.25\nbf16: false\n")
    arguments, training, _ = parse_canon(*config.format(tmp_path / "run.yaml").split())
    assert (arguments.task, training.canon_mu, training.canon_metric) == ("countdown", 0.25, "entropy")
    with pytest.raises(ValueError, match="--config is given without a value"):
        parse(["--task", "arithmetic", "--config"], CANONConfig, command="train", embedded="")


def test_the_error_names_missing_math_verify(monkeypatch):
    monkeypatch.setattr("canon_trl.cli.arguments.find_spec", lambda name: None)
    flags = ["--dataset_name", "x", "--model_name_or_path", "m", "--reward_funcs", "accuracy_reward"]
    with pytest.raises(ImportError, match=r"'accuracy_reward', which needs math-verify; install canon-trl\[math\]"):
        parse_canon(*flags)


def test_a_recipe_without_a_reward_function(tmp_path):
    """The policy rewards itself; the embedded task's own reward is left out by an empty list."""
    path = tmp_path / "recipe.yaml"
    path.write_text("reward_funcs: []\npolicy_reward: {rent: {weight: 0.5}}\nadvantage_estimator: dr_grpo\n")
    flags = ["--config", str(path), *RUN, "--output_dir", str(tmp_path), "--max_steps", "1"]
    trainer = train.main(flags)
    assert trainer.reward_func_names == ["rent"] and trainer.reward_weights.tolist() == [0.5]
    assert moved_from_the_base_model(tmp_path) > 0

    path.write_text("reward_funcs: []\n")
    with pytest.raises(ValueError, match=r"reward_funcs is empty; .* or a policy_reward"):
        parse_canon(*flags)

"""The guides match the code: logged numbers, the options of migrating.md, accelerate configs and memory."""

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy import OPTIONS, TASK, make_trainer, prompts
from trl import GRPOConfig, ModelConfig
from trl.trainer import grpo_trainer

from canon_trl import AStarPOConfig, AStarPOTrainer, CANONConfig
from canon_trl.cli.arguments import RecipeArguments
from canon_trl.cli.values import ValueArguments
from canon_trl.config.canon import PRESETS
from canon_trl.evaluation import EvaluationCallback

ROOT = Path(__file__).parents[2]


def sections(page: str, level: int) -> dict[str, str]:
    """Return the text below every heading from level 2 to the given level, by heading."""
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    parts = re.split(rf"^#{{2,{level}}} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of every row of every table, without the header."""
    blocks = [block.splitlines()[2:] for block in re.findall(r"(?:^\|.*(?:\n|\Z))+", text, flags=re.MULTILINE)]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block] for block in blocks]


def rows(text: str) -> list[list[str]]:
    """Return the rows of all tables."""
    return [row for table in tables(text) for row in table]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# --- Reading the logs ---


def run_astar_po(folder: Path) -> AStarPOTrainer:
    data = prompts(16).add_column("rewards", [[1.0, 0.0]] * 16)
    options = {name: value for name, value in OPTIONS.items() if name != "num_generations"}
    args = AStarPOConfig(str(folder), **(options | {"max_steps": 1}))
    return AStarPOTrainer(str(TASK.model_path), TASK.reward, args, data)


def surprising(log_probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return -(log_probs * mask).mean(dim=1)


def run_evaluated(folder: Path) -> Any:
    trainer = make_trainer(
        folder,
        max_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        advantage_estimator="a_grae",
        trainer_options={"eval_dataset": prompts(8)},
    )
    options = {"num_samples": 4, "pass_ks": [2], "majority_ks": [2], "answer_of": lambda text: text[-1:]}
    trainer.add_callback(EvaluationCallback(trainer, prompts(8), TASK.reward, **options))
    return trainer


SETTINGS = {
    "canon": lambda folder: make_trainer(folder, max_steps=1),
    "kl_cov_dynamic": lambda folder: make_trainer(
        folder, max_steps=2, policy_loss="kl_cov", steps_per_generation=2, dynamic_sampling=True
    ),
    "clip_cov": lambda folder: make_trainer(folder, max_steps=2, policy_loss="clip_cov", num_iterations=2),
    "grpo_beta": lambda folder: make_trainer(
        folder, max_steps=1, advantage_estimator="grpo", beta=0.01, entropy_coef=0.01
    ),
    "all_stages": lambda folder: make_trainer(
        folder,
        max_steps=2,
        policy_reward=["rent", "self_consistency", f"{__name__}:surprising"],
        token_advantage="entropy_shaped",
        loss_term="ter",
        controller="e3_temperature",
    ),
    "astar_po": run_astar_po,
    "evaluated": run_evaluated,
}

# Keys that need vLLM, tools, a mixture of experts or other losses of TRL, which no setting has.
NOT_LOGGED = ("sampling/", "tools/", "aux_loss", "cispo_clip_ratio", "vespo/")


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> dict[str, set[str]]:
    """Return the logged keys of every setting."""
    keys = {}
    for name, make in SETTINGS.items():
        trainer = make(tmp_path_factory.mktemp(name))
        trainer.train()
        keys[name] = set().union(*trainer.state.log_history)
    return keys


def documented(heading: str) -> dict[str, re.Pattern]:
    """Return the keys of a section of docs/logs.md with patterns in which NAME, N and K are a name and numbers."""
    parts = sections("logs.md", 2)
    keys = [code(cells[0])[0] for cells in rows(parts[heading])]
    assert len(keys) == len(set(keys)), "a key is listed twice"
    return {key: re.compile(re.sub("NAME", ".+", re.sub(r"@[NK]$", r"@\\d+", key))) for key in keys}


OURS = documented("What canon_trl logs")
TRLS = documented("What TRL logs")


def test_every_logged_key_is_documented(logged):
    patterns = [*OURS.values(), *TRLS.values()]
    missing = {
        key
        for keys in logged.values()
        for key in keys
        if not any(pattern.fullmatch(name) for pattern in patterns for name in (key, key.removeprefix("eval_")))
    }
    assert not missing


@pytest.mark.parametrize("key", OURS)
def test_every_documented_key_of_canon_trl_is_logged(logged, key):
    assert [name for name, keys in logged.items() if any(OURS[key].fullmatch(found) for found in keys)]


@pytest.mark.parametrize("key", TRLS)
def test_every_documented_key_of_trl_is_logged_or_in_its_code(logged, key):
    if key.startswith(NOT_LOGGED):
        assert f'"{key}"' in inspect.getsource(grpo_trainer)
    else:
        assert any(TRLS[key].fullmatch(found) for keys in logged.values() for found in keys)


@pytest.mark.parametrize(
    ("heading", "prefix", "settings"),
    [
        ("CANON", "canon/", {"canon", "kl_cov_dynamic", "clip_cov", "all_stages"}),
        ("Constant rewards", "rewards/", set(SETTINGS)),
        ("Advantages and groups", "", set(SETTINGS) - {"astar_po"}),
        ("Response metrics", "metric/", {"canon", "kl_cov_dynamic", "clip_cov", "all_stages"}),
        (
            "Entropies of right and wrong responses",
            "entropy/",
            {"canon", "kl_cov_dynamic", "clip_cov", "all_stages"},
        ),
        ("Gates", "policy_loss/", {"kl_cov_dynamic", "clip_cov"}),
        ("Token advantages and loss terms", "", {"all_stages"}),
        ("Controllers", "controller/", {"all_stages"}),
        ("Dynamic sampling", "dynamic_sampling/", {"kl_cov_dynamic"}),
        ("A\\*-PO", "astar_po/", {"astar_po"}),
        ("The evaluation callback", "evaluation/", {"evaluated"}),
    ],
)
def test_exactly_the_settings_of_a_section_log_its_keys(logged, heading, prefix, settings):
    listed = [code(cells[0])[0] for cells in rows(sections("logs.md", 3)[heading])]
    assert listed and all(key.startswith(prefix) for key in listed)
    for key in listed:
        assert {name for name, keys in logged.items() if any(OURS[key].fullmatch(found) for found in keys)} == settings


# --- Moving over ---

MIGRATING = sections("migrating.md", 2)
DEFAULTS, _, REJECTED = tables(MIGRATING["From TRL's GRPOTrainer"])
FROM_ASTAR_PO = "From A\\*-PO's repository"
STAGE_1 = tables(MIGRATING[FROM_ASTAR_PO])[1]

# The config class of a section's options, and options that they need.
CONFIGS = {
    "From verl": (CANONConfig, {}),
    "From CANON's repository": (CANONConfig, {}),
    "From A-GRAE's repository": (CANONConfig, {"advantage_estimator": "a_grae"}),
    FROM_ASTAR_PO: (AStarPOConfig, {}),
    "From Clip-Cov and KL-Cov's repository": (CANONConfig, {}),
}


def as_options(text: str) -> dict[str, Any] | None:
    """Parse `field: value` or `{field: value, ...}`; return `None` for other text, such as the name of a field."""
    read = yaml.safe_load(text) if ": " in text else None
    return read if isinstance(read, dict) else None


def written_options() -> list[Any]:
    cases = []
    for heading in CONFIGS:
        for cells in tables(MIGRATING[heading])[0]:
            found = [text for text in code(cells[1]) if as_options(text) is not None]
            cases += [pytest.param(heading, text, id=f"{cells[0]} -> {text}") for text in found]
    return cases


@pytest.mark.parametrize(("heading", "text"), written_options())
def test_the_config_accepts_the_new_option(heading, text):
    config_class, needed = CONFIGS[heading]
    options = as_options(text)
    assert set(options) <= {option.name for option in fields(config_class)}
    made = config_class("out", use_cpu=True, bf16=False, **(needed | options))
    assert {name: getattr(made, name) for name in options} == options


@pytest.mark.parametrize("heading", CONFIGS)
def test_every_section_maps_options_and_leaves_no_row_empty(heading):
    replacements = [cells[1] for cells in tables(MIGRATING[heading])[0]]
    assert all(replacements)
    assert any(as_options(text) for cell in replacements for text in code(cell))


def test_every_preset_is_in_the_table():
    named = re.findall(r"`adv_estimator=(\w+)`", MIGRATING["From CANON's repository"])
    assert set(PRESETS) <= set(named)
    table = {code(cells[0])[0]: cells[1] for cells in rows(MIGRATING["From CANON's repository"])}
    for name, options in PRESETS.items():
        written = as_options(code(table[f"adv_estimator={name}"])[0])
        assert written.items() <= options.items()


def test_the_flags_of_stage_one_exist():
    classes = (RecipeArguments, ValueArguments, ModelConfig)
    known = {f"--{option.name}" for config_class in classes for option in fields(config_class)}
    flags = {flag for cells in STAGE_1 for flag in code(cells[1])}
    assert flags and flags <= known


def test_the_defaults_that_differ_from_trl():
    table = {code(field)[0]: (code(trl)[0], code(ours)[0]) for field, trl, ours in DEFAULTS}
    of_trl = {option.name: option.default for option in fields(GRPOConfig)}
    differ = {
        option.name: (of_trl[option.name], option.default)
        for option in fields(CANONConfig)
        if option.name in of_trl and option.default != of_trl[option.name]
    }
    assert {name: tuple(map(yaml.safe_load, pair)) for name, pair in table.items()} == differ


@pytest.mark.parametrize("text", [code(cells[0])[0] for cells in REJECTED])
def test_the_config_rejects_what_the_page_says(text):
    options = as_options(text)
    with pytest.raises(ValueError, match=list(options)[-1]):
        CANONConfig("out", use_cpu=True, bf16=False, **options)


# --- Running at scale ---


def test_every_accelerate_config_has_a_row():
    table = rows(sections("scale.md", 2)["Which accelerate config"])
    assert {code(cells[0])[0] for cells in table} == {path.name for path in (ROOT / "accelerate_configs").iterdir()}


def test_every_number_of_gigabytes_is_computed():
    """The code block of the section on memory asserts every `x GB`, except the size of the GPU and vLLM's share."""
    text = (ROOT / "docs" / "scale.md").read_text()
    memory = re.search(r"^## Memory.*?(?=^## )", text, flags=re.DOTALL | re.MULTILINE).group()
    prose, block = re.split(r"```python", memory)[:2]
    stated = set(re.findall(r"([\d.]+)\s+GB", prose)) - {"80", "32"}
    computed = set(re.findall(r"\d+\.\d+|\b137\b", block.replace("137.1", "137")))
    assert stated and stated <= computed

"""Options: each has one help text, and YAML, flags and Python choose stages in the same way."""

import contextlib
import io
import json
from dataclasses import fields
from functools import partial
from typing import Annotated

import pytest
import torch
import yaml
from toy import OPTIONS, assert_same_parameters, make_trainer, parameters
from trl import GRPOConfig, TrlParser

from canon_trl.config import AStarPOConfig, CANONConfig, RunConfig, StagesConfig
from canon_trl.token_advantages import TOKEN_ADVANTAGES

CONFIGS = (RunConfig, StagesConfig, CANONConfig, AStarPOConfig)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_has_a_text(config):
    of_trl = {option.name: option.metadata["help"] for option in fields(GRPOConfig)}
    for option in fields(config):
        assert option.metadata["help"]
        if option.name in vars(config)["__annotations__"] and option.name in of_trl:
            assert option.metadata["help"] != of_trl[option.name]


def test_help_is_taken_from_the_docstring():
    helps = {option.name: option.metadata["help"] for option in fields(CANONConfig)}
    assert helps["canon_cosine_cycles"] == "Number of cosine cycles after the warm-up."
    assert helps["loss_type"] == 'The loss, see `GRPOConfig`. CANON is defined with `"dr_grpo"`.'
    inherited = {option.name: option.metadata["help"] for option in fields(StagesConfig)}
    assert helps["advantage_estimator"] == inherited["advantage_estimator"]
    assert {option.name: option.metadata["help"] for option in fields(GRPOConfig)}["loss_type"] != helps["loss_type"]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_command_line_shows_the_help(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100000")
    shown = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(shown):
        TrlParser((config,)).parse_args_and_config(["--help"])
    for option in fields(config):
        if option.name in vars(config)["__annotations__"]:
            assert option.metadata["help"].replace("%%", "%") in shown.getvalue()


# --- The fields of the stages ---


def halved(advantages, *, by: Annotated[float, "(0, 1]"] = 0.5):
    return by * advantages


def late(mask):
    return mask & (torch.arange(mask.shape[1]) > 2)


def needs_reference(log_probs, ref_log_probs):
    return log_probs - ref_log_probs


HALVED, LATE = f"{__name__}:halved", f"{__name__}:late"


def from_python(folder, options):
    return CANONConfig("out", **(OPTIONS | options))


def from_yaml(folder, options):
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(OPTIONS | {"output_dir": "out"} | options, sort_keys=False))
    return TrlParser((CANONConfig,)).parse_args_and_config(["--config", str(recipe)])[0]


def from_flags(folder, options):
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(OPTIONS | {"output_dir": "out"}))
    flags = [part for name, value in text.items() for part in (f"--{name}", value)]
    return TrlParser((CANONConfig,)).parse_args_and_config(["--config", str(recipe), *flags])[0]


SOURCES = [from_python, from_yaml, from_flags]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("entropy_shaped", [("entropy_shaped", {})]),
        ({"entropy_shaped": {"alpha": 0.1}}, [("entropy_shaped", {"alpha": 0.1})]),
        (HALVED, [(HALVED, {})]),
        ({HALVED: {"by": 0.25}, "entropy_shaped": None}, [(HALVED, {"by": 0.25}), ("entropy_shaped", {})]),
        (["entropy_shaped", {HALVED: {"by": 1}}], [("entropy_shaped", {}), (HALVED, {"by": 1})]),
    ],
    ids=str,
)
def test_a_method_or_several(tmp_path, source, spec, found):
    methods = source(tmp_path, {"token_advantage": spec}).make_token_advantages()
    assert [(method.name, method.options) for method in methods] == found


def first(rewards, lengths, *, share: Annotated[float, "(0, 1]"] = 0.5):
    return share * rewards


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("options", "name", "bound"),
    [
        ({"advantage_estimator": "grpo"}, "grpo", {}),
        ({"advantage_estimator": {"grpo": {"eps": 0.1}}}, "grpo", {"eps": 0.1}),
        ({"advantage_estimator": "grpo", "advantage_estimator_kwargs": {"eps": 0.1}}, "grpo", {"eps": 0.1}),
        ({"advantage_estimator": {"grpo": None}}, "grpo", {}),
        ({"advantage_estimator": {f"{__name__}:first": {"share": 1}}}, f"{__name__}:first", {"share": 1}),
    ],
    ids=str,
)
def test_an_estimator_and_its_options(tmp_path, source, options, name, bound):
    made = source(tmp_path, options)
    assert (made.make_estimator().name, made.make_estimator().options) == (name, bound)
    assert (made.advantage_estimator, made.advantage_estimator_kwargs) == (name, bound)


def small(log_probs, mask, *, power: Annotated[float, "(0, inf)"] = 1.0):
    return (log_probs * mask).mean() * power


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("options", "name", "bound"),
    [
        ({"policy_loss": "clip_cov"}, "clip_cov", {}),
        ({"policy_loss": {"clip_cov": {"ratio": 0.1}}}, "clip_cov", {"ratio": 0.1}),
        ({"policy_loss": "clip_cov", "policy_loss_kwargs": {"ratio": 0.1}}, "clip_cov", {"ratio": 0.1}),
        ({"policy_loss": {f"{__name__}:small": {"power": 2}}}, f"{__name__}:small", {"power": 2}),
        ({"policy_loss": f"{__name__}:small", "loss_term": "ter", "loss_type": "dapo"}, f"{__name__}:small", {}),
    ],
    ids=str,
)
def test_a_policy_loss_and_its_options(tmp_path, source, options, name, bound):
    made = source(tmp_path, options)
    assert (made.make_policy_loss().name, made.make_policy_loss().options) == (name, bound)
    assert (made.policy_loss, made.policy_loss_kwargs) == (name, bound)


def test_a_policy_loss_may_be_a_function(tmp_path):
    assert from_python(tmp_path, {"policy_loss": small}).policy_loss == f"{__name__}:small"
    trained = []
    for given in ({"trainer_options": {"policy_loss": small}}, {"policy_loss": small}):
        torch.manual_seed(3)
        trainer = make_trainer(tmp_path, max_steps=1, **given)
        trainer.train()
        trained.append(parameters(trainer))
    assert_same_parameters(*trained)


def test_an_estimator_may_be_a_function(tmp_path):
    made = from_python(tmp_path, {"advantage_estimator": partial(first, share=0.25)})
    assert (made.advantage_estimator, made.advantage_estimator_kwargs) == (f"{__name__}:first", {"share": 0.25})


@pytest.mark.parametrize(
    ("spec", "held"),
    [
        (halved, HALVED),
        (partial(halved, by=0.25), {HALVED: {"by": 0.25}}),
        ([halved, "entropy_shaped"], [HALVED, "entropy_shaped"]),
        ({halved: {"by": 0.25}}, {HALVED: {"by": 0.25}}),
        (TOKEN_ADVANTAGES["entropy_shaped"], {"entropy_shaped": {}}),
    ],
    ids=["a function", "with options bound", "several", "with options", "a method"],
)
def test_functions_become_import_paths(tmp_path, spec, held):
    made = from_python(tmp_path, {"token_advantage": spec})
    assert made.token_advantage == held == json.loads(json.dumps(made.to_dict()["token_advantage"]))


REFUSED = {
    "an unknown name": ({"token_advantage": "entropy_shapd"}, r"unknown \(did you mean 'entropy_shaped'\?\)"),
    "an unknown option": ({"loss_term": {"ter": {"coeff": 1}}}, r"takes no option 'coeff' \(did you mean 'coef'\?\)"),
    "out of bounds": ({"loss_term": {"ter": {"coef": -1}}}, r"loss_term 'ter': coef=-1 must lie in \[0, inf\)"),
    "what nothing supplies": ({"loss_term": "math:sqrt"}, r"sqrt reads \['x'\].*available: \['advantages'"),
    "listed twice": ({"loss_term": ["ter", {"ter": {"coef": 1}}]}, r"loss_term lists \['ter'\] more than once"),
    "no reference": (
        {"loss_term": f"{__name__}:needs_reference"},
        "beta=0.0 loads no reference model; set beta",
    ),
    "two estimators": ({"advantage_estimator": {"opo": {}, "grpo": {}}}, "must have one entry, name: options"),
    "options twice": (
        {"advantage_estimator": {"grpo": {"eps": 0.1}}, "advantage_estimator_kwargs": {"eps": 0.2}},
        "advantage_estimator_kwargs=.* both give options; set only one",
    ),
    "an estimator's bounds": ({"advantage_estimator": {"grpo": {"eps": 0}}}, r"eps=0 must lie in \(0, 1e6\]"),
    "ignored by a whole loss": (
        {"policy_loss": f"{__name__}:small", "epsilon": 0.3, "entropy_coef": 0.1},
        "epsilon=0.3, entropy_coef=0.1 would be ignored: policy_loss='.*small' replaces TRL's loss",
    ),
    "a reference that nothing reads": (
        {"policy_loss": f"{__name__}:small", "beta": 0.1},
        "beta=0.1 would be ignored: policy_loss='.*small' reads no ref_log_probs",
    ),
    "an unknown loss": (
        {"policy_loss": "clip_cow"},
        r"'clip_cow' is unknown \(did you mean 'clip_cov'\?\)",
    ),
    "an unknown reward": ({"policy_reward": "rnet"}, r"policy_reward='rnet' is unknown \(did you mean 'rent'\?\)"),
    "an unknown controller": (
        {"controller": "e3"},
        r"'e3' is unknown.*; choose one of \[.*'e3_temperature'",
    ),
    "no such text": ({"loss_term": "{ter}"}, "loss_term='{ter}' is not JSON"),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", REFUSED)
def test_invalid_choices_are_rejected(tmp_path, source, case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        source(tmp_path, options)


def test_a_function_without_an_import_path_goes_to_the_trainer(tmp_path):
    def local(advantages):
        return advantages

    with pytest.raises(ValueError, match=r"<locals>.local', so a checkpoint cannot name it; .* as token_advantage"):
        from_python(tmp_path, {"token_advantage": local})
    with pytest.raises(ValueError, match="loss_term is given to the trainer and as args"):
        make_trainer(tmp_path, trainer_options={"loss_term": "ter"}, loss_term="ter")


def test_the_fields_take_effect_in_training(tmp_path):
    """They have the same effect as the same functions given to the trainer."""
    named = {"token_advantage": [{HALVED: {"by": 0.25}}, LATE], "loss_term": {"ter": {"coef": 0.1}}}
    given = {"token_advantage": {halved: {"by": 0.25}, late: None}, "loss_term": {"ter": {"coef": 0.1}}}
    trainers = [
        make_trainer(tmp_path, max_steps=2, **named),
        make_trainer(tmp_path, trainer_options=given, max_steps=2),
    ]
    for trainer in trainers:
        torch.manual_seed(3)
        trainer.train()
    assert_same_parameters(*map(parameters, trainers))
    plain = make_trainer(tmp_path, max_steps=2)
    torch.manual_seed(3)
    plain.train()
    assert any(not torch.equal(value, parameters(plain)[name]) for name, value in parameters(trainers[0]).items())

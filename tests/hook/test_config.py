"""Options: their text stands once, in the docstring of their class, and `--help` shows it."""

import contextlib
import io
from dataclasses import fields

import pytest
from trl import GRPOConfig, TrlParser

from canon_trl.config import AStarPOConfig, CANONConfig, RunConfig, StagesConfig

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
def test_the_command_line_shows_it(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100000")
    shown = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(shown):
        TrlParser((config,)).parse_args_and_config(["--help"])
    for option in fields(config):
        if option.name in vars(config)["__annotations__"]:
            assert option.metadata["help"].replace("%%", "%") in shown.getvalue()

"""All methods of all stages: names, papers, and defaults within their bounds."""

import inspect
import re
import sys

import pytest

from canon_trl.advantages import ESTIMATORS
from canon_trl.controllers import CONTROLLERS
from canon_trl.loss_terms import LOSS_TERMS
from canon_trl.method import Method
from canon_trl.paper import Paper
from canon_trl.policy_losses import POLICY_LOSSES
from canon_trl.policy_rewards import POLICY_REWARDS
from canon_trl.token_advantages import TOKEN_ADVANTAGES

STAGES = {
    "policy_rewards": POLICY_REWARDS,
    "advantages": ESTIMATORS,
    "token_advantages": TOKEN_ADVANTAGES,
    "policy_losses": POLICY_LOSSES,
    "loss_terms": LOSS_TERMS,
    "controllers": CONTROLLERS,
}
METHODS = [
    pytest.param(stage, method, id=name) for stage, methods in STAGES.items() for name, method in methods.items()
]
COMPOSED = ("mix",)  # consists of other methods and has no paper
REPORTS = {"adaptive_clip": "https://microsoft.ai/"}  # not on arXiv
NEEDED = {"pass_at_k": {"k": 2}}  # options without a default


@pytest.mark.parametrize(("stage", "method"), METHODS)
def test_methods_are_listed_under_their_names(stage, method):
    assert isinstance(method, Method)
    assert STAGES[stage][method.name] is method
    assert re.fullmatch(r"[a-z][a-z0-9_]*", method.name)


@pytest.mark.parametrize(("stage", "method"), METHODS)
def test_files_name_their_paper(stage, method):
    if method.name in COMPOSED:
        return
    module = sys.modules[inspect.unwrap(method.function).__module__]
    assert module.__name__.startswith(f"canon_trl.{stage}.")
    if method.name in REPORTS:
        assert method.paper is None
        assert REPORTS[method.name] in module.__doc__
        return
    assert isinstance(method.paper, Paper)
    assert f"https://huggingface.co/papers/{method.paper.id}" in module.__doc__


@pytest.mark.parametrize(("stage", "method"), METHODS)
def test_defaults_are_within_their_bounds(stage, method):
    if method.name in COMPOSED:
        return
    assert method.with_options(NEEDED.get(method.name, {}) | method.all_options, where="") is not method

"""Methods: inputs and options from signatures, and specs by name, import path or function."""

from functools import partial
from typing import Annotated, Literal

import pytest
import torch

from canon_trl.method import Method, Stage, by_name, find
from canon_trl.paper import Paper
from canon_trl.tokens import READABLE, Tokens

PAPER = Paper(key="doe2025scaled", title="Scaled Advantages", authors="Jane Doe", id="2501.00001")


def scaled(
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    factor: Annotated[float, "(0, 1]"] = 0.5,
    side: Literal["both", "positive"] = "both",
    window: Annotated[int, "[1, inf)"] | None = None,
) -> torch.Tensor:
    return (factor * advantages).masked_fill(~mask, 0.0)


def whole(tokens, *, power: float):
    return tokens.advantages**power


STAGE = Stage("token_advantage", by_name(Method("scaled", scaled), Method("whole", whole)), READABLE)


def test_positional_parameters_are_read_and_keyword_only_ones_are_options():
    tokens = Tokens.example()
    method = find(STAGE, {"scaled": {"factor": 0.25}})
    assert method.reads == ("advantages", "mask")
    assert method.all_options == {"factor": 0.25, "side": "both", "window": None}
    assert torch.equal(method(tokens), 0.25 * tokens.advantages)
    assert torch.equal(method(tokens, factor=1.0), tokens.advantages)
    assert method.paper is PAPER


def test_a_parameter_named_tokens_receives_the_whole_input():
    tokens = Tokens.example()
    assert torch.equal(find(STAGE, "whole", {"power": 2.0})(tokens), tokens.advantages**2)


def test_renamed_parameters_read_another_attribute():
    tokens = Tokens.example()
    method = Method("of entropies", lambda advantages: 2 * advantages, renamed={"advantages": "entropies"})
    assert torch.equal(find(STAGE, method)(tokens), 2 * tokens.entropies)


@pytest.mark.parametrize("spec", [scaled, partial(scaled, factor=0.25), f"{__name__}:scaled"])
def test_functions_and_import_paths(spec):
    tokens = Tokens.example()
    factor = 0.25 if isinstance(spec, partial) else 0.5
    assert torch.equal(find(STAGE, spec)(tokens), factor * tokens.advantages)


REFUSED = {
    "an unknown name": ("scalde", r"token_advantage='scalde' is unknown \(did you mean 'scaled'\?\); choose one of"),
    "an unknown option": ({"scaled": {"facotr": 1}}, r"no option 'facotr' \(did you mean 'factor'\?\); it takes"),
    "out of bounds": ({"scaled": {"factor": 1.5}}, r"'scaled': factor=1.5 must lie in \(0, 1\]"),
    "not a number": ({"scaled": {"factor": float("nan")}}, r"factor=nan must lie in \(0, 1\]"),
    "optional, out of bounds": ({"scaled": {"window": 0}}, r"window=0 must lie in \[1, inf\)"),
    "a flag for a number": ({"scaled": {"factor": True}}, "factor=True must be a number"),
    "an unknown choice": ({"scaled": {"side": "negative"}}, "side='negative' must be 'both' or 'positive'"),
    "a missing option": ("whole", r"needs a value for \['power'\]"),
    "two names": ({"scaled": {}, "whole": {}}, "must have one entry"),
    "options that are not a mapping": ({"scaled": 0.5}, "must be a mapping"),
    "what is not available": (lambda logits: logits, r"reads \['logits'\], which is not available; .*'advantages'"),
    "not a function": ("math:pi", "is a float, not a function"),
    "not text": (3, "token_advantage=3 is unknown"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_specs(case):
    spec, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        find(STAGE, spec)


def test_annotations_may_name_types_that_only_type_checkers_import():
    def untyped(advantages: "Missing", *, factor: float = 2.0):  # noqa: F821
        return factor * advantages

    tokens = Tokens.example()
    assert torch.equal(find(STAGE, untyped, {"factor": 3.0})(tokens), 3 * tokens.advantages)

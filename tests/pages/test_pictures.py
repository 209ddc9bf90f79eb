"""The pictures of docs/methods and docs/stages are complete and show numbers of the package."""

import math
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

import pictures
import stage_pictures

DOCS = Path(__file__).parents[2] / "docs"
SOURCES = {"methods": pictures, "stages": stage_pictures}
DRAWN = [(kind, name) for kind, source in SOURCES.items() for name in source.PICTURES]
SHOWN = {
    kind: {
        path
        for page in (DOCS / kind).glob("*.md")
        for path in re.findall(rf"!\[[^\]]*\]\(\.\./images/{kind}/([^)]+)\)", page.read_text())
    }
    for kind in SOURCES
}


def test_every_method_page_shows_its_picture():
    assert {path.stem for path in (DOCS / "methods").glob("*.md")} == set(pictures.PICTURES)


@pytest.mark.parametrize("kind", SOURCES)
def test_every_picture_is_shown(kind):
    assert {f"{name}.png" for name in SOURCES[kind].PICTURES} == SHOWN[kind]
    assert {path.name for path in SOURCES[kind].FOLDER.iterdir()} == SHOWN[kind]


@pytest.mark.parametrize(("kind", "name"), DRAWN)
def test_the_script_draws_the_picture_in_the_stored_size(kind, name, tmp_path):
    source = SOURCES[kind]
    path = pictures.save_picture(source.PICTURES[name], tmp_path / f"{name}.png")
    with Image.open(path) as drawn, Image.open(source.FOLDER / path.name) as stored:
        assert drawn.size == stored.size
        assert len(drawn.getcolors()) > 8  # axes, lines and letters
    assert path.stat().st_size < 60_000


def test_canon():
    numbers = pictures.canon_numbers()
    assert (numbers["lower_mean"], numbers["higher_mean"]) == (3 / 4, 1 / 4)
    # rewards 1 1 0 1 | 0 1 0 0, less the mean of the other half, of the own half, and of all
    assert numbers["inter"] == [0.75, 0.75, -0.25, 0.75, -0.75, 0.25, -0.75, -0.75]
    assert numbers["intra"] == [0.25, 0.25, -0.75, 0.25, -0.25, 0.75, -0.25, -0.25]
    assert numbers["mixed"] == [0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5, -0.5]
    assert numbers["entropy"] == sorted(numbers["entropy"])


def test_group_relative():
    numbers = pictures.group_relative_numbers()
    right, wrong = numbers["right"], numbers["wrong"]
    # 1 of 8 is right: mean 1/8, sample standard deviation sqrt(1/8), mean of the other seven 0
    assert right["GRPO"][0] == pytest.approx(7 / 8 / math.sqrt(1 / 8), rel=1e-4)
    assert right["Dr.GRPO"][0] == 7 / 8
    assert right["RLOO"][0] == pytest.approx(1)
    # over 5600 tokens, 100 per response: sum of squares 100 * 8 * sum of p (1 - p) = 800 * 84 / 64
    deviation = math.sqrt(800 * 84 / 64 / 5599)
    assert right["REINFORCE++ baseline"][0] == pytest.approx(7 / 8 / deviation, rel=1e-4)
    for name in right:
        assert wrong[name] == pytest.approx([-value for value in right[name][::-1]], rel=1e-4)


def test_opo():
    numbers = pictures.opo_numbers()
    assert numbers["opo_baseline"] == pytest.approx([ratio / (1 + ratio) for ratio in numbers["ratio"]], abs=1e-6)
    assert set(numbers["mean"]) == {0.5}
    # baseline (100 + 200) / 1200: equal areas above and below 0
    assert numbers["opo"] == [0.75, 0.75, -0.25, -0.25]
    assert sum(a * tokens for a, tokens in zip(numbers["opo"], numbers["tokens"], strict=True)) == 0
    assert numbers["dr_grpo"] == [0.5, 0.5, -0.5, -0.5]


@pytest.mark.parametrize("q", pictures.STAGES)
def test_a_grae(q):
    numbers = pictures.a_grae_numbers()
    for index, p in enumerate(numbers["accuracy"]):
        weight = (1 - q) / (2 * math.sqrt(1 - p)) + q / (2 * math.sqrt(p))
        assert numbers["wrong"][q][index] == pytest.approx(weight, rel=1e-4)
        assert numbers["right"][q][index] == pytest.approx(weight * q, rel=1e-4)


def test_reinforce():
    numbers = pictures.reinforce_numbers()
    assert list(numbers["bars"].values()) == [[1, 0], [0, -1], [pytest.approx(0.1), -1], [1, -1]]
    pulls = numbers["pulls"]
    for count in numbers["count"]:
        p = count / 8
        assert pulls["W-REINFORCE"]["right"][count] == pytest.approx(0.1 * p)
        assert pulls["W-REINFORCE"]["wrong"][count] == pytest.approx(p - 1)
        assert pulls["Dr.GRPO"]["right"][count] == pytest.approx(p * (1 - p))
        assert pulls["Dr.GRPO"]["wrong"][count] == pytest.approx(-p * (1 - p))


def test_covariance():
    numbers = pictures.covariance_numbers()
    size = len(numbers["covariance"])
    mean_advantage, mean_log_prob = sum(numbers["advantages"]) / size, sum(numbers["log_probs"]) / size
    covariance = [
        (advantage - mean_advantage) * (log_prob - mean_log_prob)
        for advantage, log_prob in zip(numbers["advantages"], numbers["log_probs"], strict=True)
    ]
    assert numbers["covariance"] == pytest.approx(covariance, abs=1e-4)
    assert sum(numbers["clip_cov"]) == sum(numbers["kl_cov"]) == 20  # floor(0.02 * 1024)
    cut = [value for value, selected in zip(covariance, numbers["clip_cov"], strict=True) if selected]
    assert pictures.LOW < min(cut) and max(cut) < pictures.HIGH
    paying = [value for value, selected in zip(covariance, numbers["kl_cov"], strict=True) if selected]
    assert sorted(paying) == sorted(covariance)[-20:]


def test_dynamic_sampling():
    numbers = pictures.dynamic_sampling_numbers()
    # 5 of 8 are kept, so ceil(3 / (5 / 8)) = 5 more prompts; then 7 of 13, so ceil(1 / (7 / 13)) = 2 more
    assert [sampled["right"] for sampled in numbers["rounds"]] == [[4, 2, 0, 3, 1, 4, 2, 3], [0, 1, 4, 0, 2], [3, 1]]
    for sampled in numbers["rounds"]:
        assert sampled["spread"] == [0 < right < pictures.GROUP for right in sampled["right"]]
    assert numbers["trained"] == [2, 3, 1, 2, 3, 1, 2, 3]
    statistics = numbers["statistics"]
    assert statistics["prompts_drawn"] == 15
    assert (statistics["prompts_kept"], statistics["prompts_surplus"], statistics["prompts_no_spread"]) == (8, 1, 6)


def test_astar_po():
    numbers = pictures.astar_po_numbers()
    for p, values in numbers["value"].items():
        for beta, value in zip(numbers["beta"], values, strict=True):
            assert value == pytest.approx(1 + beta * math.log(p + (1 - p) * math.exp(-1 / beta)))
    assert numbers["v_star"] == pytest.approx(0.5 * math.log((math.exp(2) + 1) / 2))
    for label, reward in (("right", 1), ("wrong", 0)):
        target = reward - numbers["v_star"]
        want = [(1e-3 * ratio - target) ** 2 for ratio in numbers["log_ratio"]]
        assert numbers["loss"][label] == pytest.approx(want)


def test_estimators_that_read_rewards():
    methods = stage_pictures.advantages_numbers()["methods"]
    # one of 16 is right, so the mean is 1/16; MaxRL divides by it
    assert methods["dr_grpo"]["right"][0] == pytest.approx(15 / 16)
    assert methods["maxrl"]["right"][0] == pytest.approx(15)
    assert methods["maxrl"]["wrong"] == pytest.approx([-1] * 15)
    # rewards of 1 and -1: (1 + 7/8) * (1 - 0.256 * (-7/8 - 1))
    assert methods["pshw"]["right"][0] == pytest.approx(15 / 8 * (1 + 0.256 * 15 / 8))


def test_factors_of_the_policy_losses():
    numbers = stage_pictures.policy_losses_numbers()
    sides, ratio = numbers["sides"], numbers["ratio"]
    far = min(range(len(ratio)), key=lambda place: abs(ratio[place] - 1.6))
    # at ratio 1.6 a token of probability 0.4 has moved by 0.24, one of 0.05 by 0.03; DPPO allows 0.2
    for name, factor in {"PPO, clip 0.2": 0, "DPPO, p(old) = 0.05": 1.6, "DPPO, p(old) = 0.4": 0, "UP": 1}.items():
        assert sides["A > 0"][name][far] == pytest.approx(factor, abs=0.02)


def test_entropy_shaped_advantages():
    numbers = stage_pictures.token_advantages_numbers()
    # min(0.4 * H, |A| / 2): 0.4 nats add 0.16, 3 nats at most half of the advantage
    place = min(range(61), key=lambda place: abs(numbers["entropy"][place] - 0.4))
    assert numbers["shaped"]["A = -1"][place] == pytest.approx(-0.84)
    assert numbers["shaped"]["A = +0.5"][-1] == pytest.approx(0.75)

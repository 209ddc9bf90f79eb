"""Training on two gloo processes, with and without DeepSpeed, compared with one process."""

import json

import pytest
import torch
from distributed.groups_across_ranks import CHOSEN_BY_TRL, METRICS, run_by_token, run_fixed
from distributed.stages_across_ranks import (
    POLICY_LOSSES,
    RESPONSES,
    run,
    run_agreeing,
    run_astar_po,
    run_rewarded,
    run_shrunken,
)
from launching import launch
from toy import TASK, assert_same_but_for_rounding, assert_same_parameters
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    launch("cpu_two_processes.yaml", "groups_across_ranks.py", folder)
    return folder


def ranks(folder, metric):
    return [torch.load(folder / f"{metric}_{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.smoke
@pytest.mark.parametrize("metric", METRICS)
def test_two_processes_give_the_advantages_of_one(two_ranks, tmp_path, metric):
    alone = run_fixed(tmp_path, metric, ranks=1)
    first, second = [rank["fixed"] for rank in ranks(two_ranks, metric)]
    for step in range(2):
        for name, want in alone["rollouts"][step].items():
            for got in (first["rollouts"][step][name], second["rollouts"][step][name]):
                if name == "metrics":
                    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
                elif isinstance(want, torch.Tensor):
                    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6, equal_nan=True)
                else:
                    assert got == want, name
        assert alone["advantages"][step].abs().max() > 0
        both = torch.cat([first["local"][step], second["local"][step]])
        torch.testing.assert_close(both, alone["local"][step], atol=1e-6, rtol=1e-6)


@pytest.mark.smoke
def test_values_per_token_on_two_processes_equal_those_of_one(two_ranks, tmp_path):
    """The widest response is on one rank, and a group is on both."""
    alone = run_by_token(tmp_path, ranks=1)
    first, second = ranks(two_ranks, "by_token")
    for step, want in enumerate(alone["rollouts"]):
        assert want["entropies"].shape == (3, 4, want["width"])
        for rank in (first, second):
            got = rank["rollouts"][step]
            assert torch.equal(got["mask"], want["mask"])
            torch.testing.assert_close(got["entropies"], want["entropies"], atol=1e-5, rtol=0)
            torch.testing.assert_close(rank["advantages"][step], alone["advantages"][step], atol=1e-4, rtol=1e-4)
        both = [rank["token_advantages"][step] for rank in (first, second)]
        assert both[0].shape[1] != both[1].shape[1], "the case needs ranks of different width"
        for rows, mine in zip(alone["token_advantages"][step].chunk(2), both, strict=True):
            torch.testing.assert_close(mine, rows[:, : mine.shape[1]], atol=1e-4, rtol=1e-4)
            assert (rows[:, mine.shape[1] :] == 0).all()
        assert alone["token_advantages"][step].abs().max() > 0


@pytest.mark.smoke
@pytest.mark.parametrize("estimator", CHOSEN_BY_TRL)
def test_estimators_of_trl_equal_trls_on_two_processes(two_ranks, estimator):
    for trained in ranks(two_ranks, estimator):
        assert any(trained["trl"]["table"])
        assert trained["ours"]["table"] == trained["trl"]["table"]
        assert_same_parameters(trained["ours"]["parameters"], trained["trl"]["parameters"])


@pytest.mark.parametrize("metric", METRICS)
def test_ranks_agree_on_sampled_responses(two_ranks, metric):
    first, second = [rank["sampled"] for rank in ranks(two_ranks, metric)]
    assert len(first["advantages"]) == 2
    for step, advantages in enumerate(first["advantages"]):
        assert torch.equal(advantages, second["advantages"][step])
        assert torch.equal(first["rollouts"][step]["metrics"][metric], second["rollouts"][step]["metrics"][metric])
        assert torch.equal(torch.cat([first["local"][step], second["local"][step]]), advantages.flatten())
    assert first["table"] == second["table"] == first["advantages"][-1].flatten().tolist()
    assert_same_parameters(first["parameters"], second["parameters"])


@pytest.mark.parametrize("metric", METRICS)
def test_resume_on_two_ranks(two_ranks, metric):
    for rank in ranks(two_ranks, metric):
        assert_same_parameters(rank["resumed"], rank["sampled"]["parameters"])


@pytest.mark.parametrize(
    ("stage", "method"), [(2, "canon"), (3, "canon"), (3, "kl_cov"), (3, "e3_temperature"), (3, "astar_po")]
)
def test_zero(tmp_path, stage, method):
    launch(f"zero{stage}_cpu.yaml", "zero.py", tmp_path, method)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["stage"], report["processes"]) == (stage, 2)
    if method == "astar_po":
        assert report["log"]["astar_po/v_star"] > 0
    else:
        assert report["log"]["canon/mu"] == 1.0
        assert 0 < report["log"]["canon/metric_lower"] < report["log"]["canon/metric_higher"]
    if method == "kl_cov":
        assert report["log"]["policy_loss/frac_gated"] > 0
        assert report["log"]["groups/frac_no_spread"] == 0
    if method == "e3_temperature":
        assert report["log"]["controller/temperature"] == 1.0
        assert report["temperature"] != 1.0
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    resumed = AutoModelForCausalLM.from_pretrained(tmp_path / "resumed")
    assert_same_parameters(dict(resumed.named_parameters()), dict(trained.named_parameters()))
    base = AutoModelForCausalLM.from_pretrained(TASK.model_path)
    moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), base.parameters(), strict=True)]
    assert all(moved)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    written = trained.generate(**tokenizer("7+8*3-9+4*6=", return_tensors="pt"), max_new_tokens=40)
    assert "#" in tokenizer.decode(written[0])


def test_recorded_entropies_follow_responses_to_other_ranks(stages):
    kept = [torch.load(stages / f"recorded_{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert max(kept[0]["rounds"]) > 1, "the case needs a second round"
    for rank in kept:
        assert len(rank["difference"]) == 3 and max(rank["difference"]) < 2e-5


def test_ranks_agree_on_fresh_prompts_after_one_has_lost_its_state(stages):
    """Each round's prompts, joined over the ranks, are groups of four although borders cut through groups."""
    first, second = [torch.load(stages / f"recorded_{rank}.pt", weights_only=False)["prompts"] for rank in (0, 1)]
    assert len(first) > 1, "the case needs a second round"
    for own, other in zip(first, second, strict=True):
        prompts = own + other
        assert prompts == [prompt for prompt in prompts[::4] for _ in range(4)]


def test_steps_of_several_shrunken_rollouts_do_not_depend_on_ranks(stages, tmp_path):
    with pytest.warns(UserWarning, match="with 13 values for 12 completions"):
        alone = run_shrunken(tmp_path, ranks=1)
    kept = [torch.load(stages / f"shrunken_{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert min(entry["dynamic_sampling/prompts_kept"] for entry in alone["log"]) < 3, "the case needs an empty place"
    assert_same_parameters(kept[0]["parameters"], kept[1]["parameters"])
    for got, want in zip(kept[0]["log"], alone["log"], strict=True):
        assert got == pytest.approx(want, rel=1e-4, abs=1e-6)
    for key, value in alone["parameters"].items():
        torch.testing.assert_close(kept[0]["parameters"][key], value, atol=1e-6, rtol=1e-5)


def test_policy_rewards_do_not_depend_on_ranks(stages, tmp_path):
    alone = run_rewarded(tmp_path, ranks=1)
    kept = [torch.load(stages / f"rewarded_{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert len(alone["rollouts"]) == 2
    for rank in kept:
        whole = rank["whole"]
        for got, want in zip(whole["rollouts"], alone["rollouts"], strict=True):
            assert want[0][..., 1].unique().numel() == RESPONSES, "every response has another RENT reward"
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        for got, want in zip(whole["log"], alone["log"], strict=True):
            assert got == pytest.approx(want, rel=1e-4, abs=1e-6)
        assert whole["table"] == pytest.approx(alone["table"], rel=1e-5)
        for key, value in alone["parameters"].items():
            torch.testing.assert_close(whole["parameters"][key], value, atol=1e-5, rtol=1e-5)
        assert_same_parameters(rank["resumed"]["parameters"], whole["parameters"])
        assert rank["resumed"]["log"] == whole["log"]
    assert_same_parameters(kept[0]["whole"]["parameters"], kept[1]["whole"]["parameters"])


def test_agreement_within_groups_does_not_depend_on_ranks(stages, tmp_path):
    """The second of three groups is on both ranks."""
    alone = run_agreeing(tmp_path, ranks=1)
    for rewards in alone["rewards"]:
        for group in rewards[..., 1:].tolist():  # place 2 has no answer; the digit decides whether place 1 agrees
            assert group in (
                [[0.75, 1.0], [0.75, 1.0], [0.0, 0.0], [0.75, 1.0]],
                [[0.5, 1.0], [0.25, 0.0], [0.0, 0.0], [0.5, 1.0]],
            )
    for rank in (torch.load(stages / f"agreeing_{rank}.pt", weights_only=False) for rank in (0, 1)):
        assert all(torch.equal(got, want) for got, want in zip(rank["rewards"], alone["rewards"], strict=True))
        assert_same_but_for_rounding(rank["log"], alone["log"])
        for key, value in alone["parameters"].items():
            torch.testing.assert_close(rank["parameters"][key], value, atol=1e-5, rtol=1e-5)
    assert [entry["policy_reward/answered"] for entry in alone["log"]] == [0.75] * 3


def test_astar_po_does_not_depend_on_ranks(stages, tmp_path):
    alone = run_astar_po(tmp_path, ranks=1)
    kept = [torch.load(stages / f"astar_po_{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert alone["advantages"][0].unique().numel() > 2
    for step, advantages in enumerate(alone["advantages"]):
        both = torch.cat([rank["whole"]["advantages"][step] for rank in kept])
        torch.testing.assert_close(both, advantages, atol=1e-6, rtol=1e-6)
    for key, value in alone["parameters"].items():
        torch.testing.assert_close(kept[0]["whole"]["parameters"][key], value, atol=1e-6, rtol=1e-5)
    for rank in kept:
        assert_same_parameters(rank["resumed"], rank["whole"]["parameters"])


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    launch("cpu_two_processes.yaml", "stages_across_ranks.py", folder)
    return folder


@pytest.mark.parametrize("scope", ["batch", "micro_batch"])
@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_dynamic_sampling_and_policy_losses_do_not_depend_on_ranks(stages, tmp_path, name, scope):
    """One rank and two ranks train on the same groups, select the same tokens and end with the same parameters."""
    alone = run(tmp_path, name, scope, ranks=1)
    kept = [torch.load(stages / f"{name}_{scope}_{rank}.pt", weights_only=False) for rank in (0, 1)]
    first, second = kept[0]["whole"], kept[1]["whole"]
    rounds = [entry["dynamic_sampling/rounds"] for entry in alone["log"] if "dynamic_sampling/rounds" in entry]
    assert len(rounds) == 2 and max(rounds) > 1, "the case needs a second round"
    for step, rewards in enumerate(alone["rewards"]):
        assert torch.equal(first["rewards"][step], rewards) and torch.equal(second["rewards"][step], rewards)
    for table in alone["tables"]:
        written = zip(table["prompt"], table["completion"], strict=True)
        assert table["shown"] == [f"{prompt}|{completion}" for prompt, completion in written]
    assert first["tables"] == second["tables"]
    assert_same_but_for_rounding(first["tables"], alone["tables"])
    assert len(alone["selected"]) == 4
    for step, selected in enumerate(alone["selected"]):
        both = first["selected"][step] | second["selected"][step]
        assert both == selected
        assert any(selected.values())
    for got, want in zip(first["log"], alone["log"], strict=True):
        assert got == pytest.approx(want, rel=1e-4, abs=1e-6)
    for key, value in alone["parameters"].items():
        torch.testing.assert_close(first["parameters"][key], value, atol=1e-6, rtol=1e-5)
    for rank in kept:
        assert_same_parameters(rank["resumed"], rank["whole"]["parameters"])


def test_fsdp2_shards_are_searched_for_nan_in_place(tmp_path):
    launch("cpu_two_processes.yaml", "sharded.py", tmp_path)

"""The model card: papers, options in effect, files and results."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig
from toy import TASK, make_trainer, prompts

from canon_trl import AStarPOConfig, AStarPOTrainer
from canon_trl.advantages import ESTIMATORS
from canon_trl.policy_losses import POLICY_LOSSES, astar_po, covariance
from canon_trl.policy_rewards import POLICY_REWARDS
from canon_trl.publishing.citation import package_citation
from canon_trl.publishing.model_card import changed_options, logged_results
from canon_trl.sampling import dynamic_sampling

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", [name for name, method in ESTIMATORS.items() if method.paper])
def test_every_estimators_card_cites_its_own_paper(tmp_path, name):
    needed = {"pass_at_k": {"k": 2}}.get(name)
    trainer = make_trainer(
        tmp_path,
        advantage_estimator=name,
        advantage_estimator_kwargs=needed,
        hub_token="hf_secret",
        run_name="private",
    )
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert {"trl", "canon_trl", name} <= {*card.data.tags} and "grpo" not in {*card.data.tags} - {name}
    assert f"https://huggingface.co/papers/{ESTIMATORS[name].paper.id}" in card.text
    cited = re.findall(r"^@\w+{(.+),$", card.text, flags=re.MULTILINE)
    assert cited == [ESTIMATORS[name].paper.key, "vonwerra2020trl", "canon_trl"]
    assert f"| `advantage_estimator` | `{name}` |" in card.text
    assert "hf_secret" not in card.content and "private" not in card.content
    assert "curves.png" not in card.text, "nothing was trained"


def test_the_card_lists_the_options_in_effect(tmp_path):
    """It lists given and default options of the estimator, and those that replace options of the config."""

    def texts(**options):
        trainer = make_trainer(tmp_path, **options)
        trainer.create_model_card()
        return (tmp_path / "README.md").read_text()

    text = texts(advantage_estimator="a_grae", advantage_estimator_kwargs={"scale": False})
    for row in ("`scale` | `false`", "`attenuation` | `1.0`", "`eps` | `1e-06`", "`form` | `paper`"):
        assert f"| {row} |" in text
    assert "canon_mu" not in text

    text = texts(canon_mu_schedule="cosine_intra_to_inter", canon_cosine_cycles=2, canon_alpha=0.5)
    assert "| `canon_cosine_cycles` | `2` |" in text and "`canon_mu`" not in text
    assert "`canon_cosine_low`" not in text, "the schedule's default"

    def second_thoughts(completions, **kwargs):
        return [float(text.count("=")) for text in completions]

    text = texts(trainer_options={"canon_metric": second_thoughts})
    assert "| `canon_metric` | `second_thoughts` |" in text and "| `canon_alpha_group` | `lower` |" in text

    text = texts(trainer_options={"advantage_estimator": lambda rollout: rollout.rewards}, dynamic_sampling=True)
    assert "CANON" not in text and ESTIMATORS["canon"].paper.id not in text
    assert '| `dynamic_sampling` | `{"max_rounds": 10,' in text and dynamic_sampling.PAPER.citation in text


def test_the_card_of_a_mix_cites_all_its_estimators(tmp_path):
    trainer = make_trainer(tmp_path, advantage_estimator={"mix": {"canon": 0.5, "opo": 0.25}})
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "| `advantage_estimator` | `mix` |" in text and "| `canon` | `0.5` |" in text
    cited = re.findall(r"^@\w+{(.+),$", text, flags=re.MULTILINE)
    assert cited == ["vonwerra2020trl", *(ESTIMATORS[name].paper.key for name in ("canon", "opo")), "canon_trl"]


def test_a_paper_is_cited_once(tmp_path):
    """The estimator and a loss term come from one paper, and two policy rewards from another."""
    rewards = ["em_rl_sequence", "em_rl_token"]
    options = {"advantage_estimator": "pshw", "advantage_estimator_kwargs": {"low": 0}, "loss_term": "ter"}
    make_trainer(tmp_path, policy_reward=[{name: {"weight": 0.0}} for name in rewards], **options).create_model_card()
    text = (tmp_path / "README.md").read_text()
    keys = [ESTIMATORS["pshw"].paper.key, "vonwerra2020trl", POLICY_REWARDS["em_rl_token"].paper.key, "canon_trl"]
    assert re.findall(r"^@\w+{(.+),$", text, flags=re.MULTILINE) == keys
    assert "Cite em_rl_sequence and em_rl_token as:" in text


def test_a_star_po_is_cited_with_its_options(tmp_path):
    values = prompts(8).add_column("rewards", [[0.0, 1.0]] * 8)
    trainer = make_trainer(
        tmp_path, AStarPOTrainer, AStarPOConfig, {"train_dataset": values}, num_generations=1, beta1=0.25
    )
    trainer.create_model_card(dataset_name="me/values")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.datasets == "me/values" and {"trl", "canon_trl", "astar_po"} <= {*card.data.tags}
    assert "| `beta1` | `0.25` |" in card.text and "| `beta2` | `0.001` |" in card.text
    assert "| `beta` |" not in card.text
    assert astar_po.PAPER.citation in card.text
    assert "[me/values](https://huggingface.co/datasets/me/values), 8 prompts" in card.text


def test_files_are_named_without_their_folders(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("")
    trainer = make_trainer(tmp_path / "run", trainer_options={"peft_config": LoraConfig(target_modules="all-linear")})
    trainer.create_model_card(dataset_name=str(path))
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert "Data: problems.jsonl, 64 prompts" in card.text and "Base model: `arithmetic_model`" in card.text
    assert card.data.datasets is None and card.data.base_model is None
    assert str(tmp_path) not in card.content and str(TASK.model_path.parent) not in card.content


def test_the_card_reports_the_last_result_of_each_kind():
    history = [
        {"step": 1, "eval_rewards/r/mean": 0.1, "eval_a_loss": 0.0},
        {"step": 1, "eval_rewards/r/mean": 0.2, "eval_b_loss": 0.0},
        {"step": 1, "evaluation/avg@8": 0.3},
        {"step": 2, "eval_rewards/r/mean": 0.4, "eval_a_loss": 0.0},
        {"step": 2, "eval_rewards/r/mean": None, "eval_b_loss": 0.0},
        {"step": 3, "evaluation/avg@8": 0.5, "evaluation/length": 7.0},
        {"step": 3, "rewards/r/mean": 0.9},
        {"step": 4, "eval_rewards/r/mean": float("nan"), "eval_a_loss": 0.0},  # no response was scored
        {"step": 5, "eval_rewards/r/mean": None, "eval_b_loss": 0.0},
    ]
    found = logged_results(history, "r", {"a": None, "b": None})
    assert [(each.dataset_name, each.metric_name, each.metric_value) for each in found] == [
        ("held-out prompts a", "r, mean over responses, after 2 steps", 0.4),
        ("held-out prompts b", "r, mean over responses, after 1 steps", 0.2),
        ("prompts of EvaluationCallback", "avg@8, after 3 steps", 0.5),
        ("prompts of EvaluationCallback", "length, after 3 steps", 7.0),
    ]


def test_no_option_reveals_the_machine_or_a_token(tmp_path):
    options = {"vllm_server_host": "10.0.0.1", "model_init_kwargs": {"token": "hf_secret"}, "hub_token": "hf_secret"}
    trainer = make_trainer(tmp_path, top_p=0.9)
    for name, value in options.items():
        setattr(trainer.args, name, value)
    changed = changed_options(trainer.args)
    assert changed["top_p"] == 0.9 and changed["learning_rate"] == 1e-3
    assert not {*options, "output_dir", "report_to", "use_cpu"} & changed.keys()


def test_every_method_has_a_paper():
    without = [name for name, method in {**ESTIMATORS, **POLICY_LOSSES}.items() if method.paper is None]
    assert without == ["mix"]
    assert POLICY_LOSSES["clip_cov"].paper == POLICY_LOSSES["kl_cov"].paper == covariance.PAPER


def test_citations_agree_with_the_citation_file():
    given = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for fact in (given["title"], given["authors"][0]["name"], given["version"], given["license"]):
        assert f"{{{fact}}}" in package_citation()
    (reference,) = given["references"]
    names = " and ".join(f"{each['given-names']} {each['family-names']}" for each in reference["authors"])
    paper = ESTIMATORS["canon"].paper
    assert (paper.title, paper.authors) == (reference["title"], names)
    assert (
        f"arXiv:{paper.id}" == reference["identifiers"][0]["value"]
        and f"year    = {reference['year']}" in paper.citation
    )

"""The private members of TRL that the hook wraps. When a release of TRL moves one, this fails first and names it."""

import inspect
import math
import re
from collections import deque
from operator import attrgetter

import pytest
import torch
from toy import ONE_ROLLOUT, make_trainer, rollout_with_tool
from trl import GRPOConfig, GRPOTrainer, RLOOTrainer

from canon_trl.advantages import ESTIMATORS
from canon_trl.config.loss_stages import WITH_TERMS
from canon_trl.hook.members import MEMBERS
from canon_trl.hook.normaliser import aggregate
from canon_trl.hook.rollout_parts import GENERATED
from canon_trl.trl_release import FUSED_HEAD


@pytest.mark.parametrize(
    "member", [member for member in MEMBERS if member.parameters is not None], ids=attrgetter("name")
)
def test_a_method_has_the_parameters_that_the_hook_passes(member):
    _, *found = inspect.signature(getattr(GRPOTrainer, member.name)).parameters
    assert tuple(found[: len(member.parameters)]) == member.parameters, f"{member.name}: {member.why}"


@pytest.mark.parametrize("member", [member for member in MEMBERS if member.parameters is None], ids=attrgetter("name"))
def test_a_trainer_has_the_attribute(observed, member):
    if member.name == "_last_loaded_step":  # with vLLM only
        assert "self._last_loaded_step = -1" in inspect.getsource(GRPOTrainer.__init__), member.why
    else:
        assert hasattr(observed, member.name), f"{member.name}: {member.why}"


class Observed(GRPOTrainer):
    """TRL's trainer, which records what passes the seams."""

    def _generate(self, prompts):
        self.generated = super()._generate(prompts)
        return self.generated

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self.rewarded = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.completion_ids_list = completion_ids_list
        return self.rewarded

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        scored = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        self.scored.append((model, args, kwargs, scored))
        return scored

    def _generate_and_score_completions(self, inputs):
        self.scored = []
        self.output = super()._generate_and_score_completions(inputs)
        self.scored_in_rollout = list(self.scored)
        self.advantages_logged = list(self._logs["advantages"])
        return self.output


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    trainer = make_trainer(
        tmp_path_factory.mktemp("seams"),
        trainer_class=Observed,
        config_class=GRPOConfig,
        max_steps=1,
        num_iterations=2,
        mask_truncated_completions=True,
    )
    trainer.train()
    return trainer


def test_generate_returns_lists_by_response(observed):
    assert len(observed.generated) == len(GENERATED), "_generate"
    parts = dict(zip(GENERATED, observed.generated, strict=True))
    assert parts["completion_ids"] == observed.completion_ids_list, "_generate()[1]"
    assert parts["tool_mask"] is None, "_generate()[2]"
    assert all(isinstance(text, str) for text in parts["completions"]), "_generate()[3]"
    assert [len(parts[name]) for name in ("prompt_ids", "completions")] == [8, 8], "_generate"
    assert [parts[name] for name in ("sampling_log_probs", "images")] == [None, None], "_generate"
    assert (parts["extra_fields"], parts["tool_images"]) == ({}, []), "_generate"


def test_rewards_are_rows_by_functions(observed):
    assert observed.rewarded.shape == (8, 1), "_calculate_rewards"


def test_output_of_a_rollout(observed):
    output = observed.output
    rows, width = output["completion_ids"].shape
    assert rows == 8
    for key in ("prompt_ids", "prompt_mask", "completion_mask", "old_per_token_logps"):
        assert output[key].shape[0] == rows, key
    assert output["advantages"].shape == (rows,), "advantages"
    assert output["old_per_token_logps"].shape == (rows, width), "old_per_token_logps"


def test_the_policy_pass_is_called_as_expected(observed):
    (model, args, kwargs, scored), *more = observed.scored_in_rollout
    assert not more, "there is one scoring pass"
    assert model is observed.model
    input_ids, attention_mask, logits_to_keep, *_ = args
    assert logits_to_keep == observed.output["completion_ids"].shape[1]
    assert input_ids.shape == attention_mask.shape
    assert "compute_entropy" not in kwargs
    log_probs, entropies, aux_loss = scored
    assert log_probs is observed.output["old_per_token_logps"], "the log-probabilities identify the pass"
    assert entropies is None and aux_loss is None
    truncated = observed.output["completion_mask"].sum(dim=1) == 0
    assert truncated.any()
    if FUSED_HEAD:
        assert (log_probs[truncated] == 0).all(), "masked positions are 0"


def test_logs_and_metrics(observed):
    assert isinstance(observed._logs["advantages"], deque), "_logs['advantages']"
    assert observed._logs["advantages"].maxlen == observed.args.generation_batch_size
    assert observed.advantages_logged == observed.output["advantages"].tolist()
    assert isinstance(observed._logs["extra"]["new"], deque), "_logs['extra']"
    assert isinstance(observed._metrics["train"]["new"], list), "_metrics"


def test_position_in_the_rollout(observed):
    assert observed._step == 1, "_step"
    assert len(observed._buffered_inputs) == observed.args.steps_per_generation, "_buffered_inputs"
    assert isinstance(observed._buffered_inputs[0], dict)


def test_the_loss_takes_advantages_per_token(observed):
    inputs = observed._buffered_inputs[0]
    whole = observed._compute_loss(observed.model, inputs)
    widened = inputs["advantages"].unsqueeze(1).expand_as(inputs["completion_ids"])
    spread = observed._compute_loss(observed.model, inputs | {"advantages": widened})
    torch.testing.assert_close(whole, spread)


def test_the_loss_scores_first_and_then_reads_the_advantages(observed, monkeypatch):
    """So a policy loss can replace them after it has read the tokens' log-probabilities."""
    inputs = dict(observed._buffered_inputs[0])
    assert observed._compute_loss(observed.model, inputs) != 0
    score = observed._get_per_token_logps_and_entropies

    def silence(*args, **kwargs):
        inputs["advantages"] = torch.zeros_like(inputs["advantages"])
        return score(*args, **kwargs)

    monkeypatch.setattr(observed, "_get_per_token_logps_and_entropies", silence)
    assert observed._compute_loss(observed.model, inputs) == 0, "_compute_loss"


def test_the_bounds_of_ratio_clipping(observed):
    assert (observed.epsilon_low, observed.epsilon_high) == (0.2, 0.2), "epsilon_low, epsilon_high"


def test_columns_wait_for_the_table(observed):
    observed._log_completion_extra("letters", [1, 2])
    assert dict(observed._pending_extra_logs) == {"letters": [1, 2]}, "_pending_extra_logs"
    observed._pending_extra_logs.clear()


def test_a_sampler_draws_one_order_per_epoch(observed):
    sampler = observed._get_train_sampler()
    first, second = list(sampler), list(sampler)
    assert first != second
    again = observed._get_train_sampler()
    next(iter(again))
    assert list(again) == second, "_get_train_sampler"


def test_other_members(observed):
    trainer = observed
    assert "max_steps" in inspect.getsource(type(trainer).set_initial_training_values), "set_initial_training_values"
    assert trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-2:] == (32 * 2, 1)
    assert trainer._get_output_dir(trial=None) == trainer.args.output_dir, "_get_output_dir"
    for column in ("prompt", "completion"):
        assert isinstance(trainer._logs[column], deque), f"_logs[{column!r}]"
        assert len(trainer._logs[column]) == 8, f"_logs[{column!r}]"
    assert list(trainer._logs["rewards"]) == ["accuracy"], "_logs['rewards']"
    assert len(trainer._logs["rewards"]["accuracy"]) == 8, "_logs['rewards']"
    assert trainer.vllm_importance_sampling_correction is True
    assert (trainer.log_completions, trainer.num_generations, trainer.num_generations_eval) == (False, 4, 4)


def test_members_that_outlive_a_run(observed):
    assert observed._pending_metrics == {}, "_pending_metrics"
    assert (observed.entropy_coef, observed._last_world_entropy) == (0.0, math.inf)
    assert observed.optimizer is not None and observed._created_lr_scheduler


class Requesting(Observed):
    def _generate(self, prompts):
        generated = super()._generate(prompts)
        self.num_iterations = self.args.gradient_accumulation_steps + 1
        return generated

    def _calculate_rewards(self, *args):
        self.scored_before_rewards = len(self.scored)
        return super()._calculate_rewards(*args)


def test_a_scoring_pass_can_be_requested_while_generating(tmp_path):
    """TRL decides by num_iterations after it has generated, and scores before it computes rewards."""
    trainer = make_trainer(tmp_path, trainer_class=Requesting, config_class=GRPOConfig, max_steps=1)
    trainer.train()
    assert trainer.scored_before_rewards == 1, "num_iterations"
    assert trainer.output["old_per_token_logps"] is trainer.scored_in_rollout[0][3][0], "old_per_token_logps"


@pytest.fixture(scope="module")
def sampled_elsewhere(tmp_path_factory):
    """A trainer whose sampler reports log-probabilities."""

    def rollout(prompts, trainer):
        ids = trainer.processing_class(prompts)["input_ids"]
        return {"prompt_ids": ids, "completion_ids": ids, "logprobs": [[-0.5] * len(row) for row in ids]}

    trainer = make_trainer(
        tmp_path_factory.mktemp("sampled"),
        trainer_class=Observed,
        config_class=GRPOConfig,
        trainer_options={"rollout_func": rollout},
        max_steps=1,
    )
    trainer.train()
    return trainer


def test_log_probabilities_of_the_sampler(sampled_elsewhere):
    output = sampled_elsewhere.output
    got = output["sampling_per_token_logps"]
    assert got.shape == output["completion_ids"].shape, "sampling_per_token_logps"
    assert torch.equal(got, -0.5 * output["completion_mask"]), "sampling_per_token_logps"


@pytest.mark.parametrize(("micro_batches", "accumulation"), [(1, 1), (2, 2), (2, 4)])
@pytest.mark.parametrize("loss_type", WITH_TERMS)
def test_a_term_has_the_divisor_of_the_loss(tmp_path, loss_type, micro_batches, accumulation):
    """`aggregate(x)` is minus TRL's loss with advantages x on-policy, to the last bit."""
    seen = []

    class Measuring(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            values = torch.randn(inputs["completion_ids"].shape)
            inputs = {name: part for name, part in inputs.items() if name != "old_per_token_logps"}
            loss = super()._compute_loss(model, inputs | {"advantages": values})
            seen.append((loss, aggregate(values, inputs["completion_mask"].bool(), self, inputs)))
            return loss

    trainer = make_trainer(
        tmp_path,
        trainer_class=Measuring,
        config_class=GRPOConfig,
        loss_type=loss_type,
        max_steps=1,
        max_completion_length=40,  # longer than any response, so it differs from the width
        per_device_train_batch_size=4,
        steps_per_generation=micro_batches,
        gradient_accumulation_steps=accumulation,
    )
    trainer.train()
    assert len(seen) == accumulation
    for loss, aggregated in seen:
        assert aggregated == -loss != 0


def test_a_rollout_func_may_score_with_the_trainer(tmp_path):
    calls = []

    def scoring_rollout(prompts, trainer):
        written = rollout_with_tool(prompts, trainer)
        ids = torch.tensor([written["prompt_ids"][0] + written["completion_ids"][0]])
        scored = trainer._get_per_token_logps_and_entropies(trainer.model, ids, torch.ones_like(ids), 2)
        calls.append(scored[0].shape)
        return written

    trainer = make_trainer(tmp_path, trainer_options={"rollout_func": scoring_rollout}, **ONE_ROLLOUT)
    trainer.train()
    assert calls == [(1, 2)]


@pytest.mark.parametrize(("name", "trainer"), [("grpo", GRPOTrainer), ("rloo", RLOOTrainer)])
def test_papers_that_trl_also_cites_are_cited_alike(name, trainer):
    paper, theirs = ESTIMATORS[name].paper, trainer._paper
    assert (paper.title, paper.id) == (theirs["title"], theirs["id"])
    (authors,) = re.findall(r"author\s*= {(.*)},\n", theirs["citation"])
    ours = paper.authors.replace("\\", "").split(" and ")  # TRL's string has lost the backslashes
    assert [author for author in ours if author in authors] == authors.split(" and ")  # TRL leaves out two of GRPO's
    assert f"@{{{paper.key}," in re.sub(r"@\w+", "@", theirs["citation"])

"""A run that is resumed from any checkpoint continues bit for bit as if it had never stopped."""

import random
import shutil

import numpy
import pytest
import torch
from observe import completions_table, keep_rollouts
from peft import LoraConfig, get_peft_model
from toy import (
    OPTIONS,
    TASK,
    assert_same_parameters,
    base_model,
    length_reward,
    logged,
    make_trainer,
    parameters,
    prompts,
)
from toy import assert_resumes as assert_resumes_anywhere
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_callback import ExportableState

from canon_trl import CANONConfig, CANONTrainer

CASES = {
    "entropy": {},
    "random metric": {"canon_metric": "random", "canon_mu": 0.7},
    "constant": {"canon_metric": "length", "canon_alpha": 0.9},
    "inter_to_intra": {"canon_mu_schedule": "inter_to_intra"},
    "intra_to_inter": {"canon_mu_schedule": "intra_to_inter"},
    "cosine_inter_to_intra": {"canon_mu_schedule": "cosine_inter_to_intra", "canon_cosine_cycles": 1},
    "cosine_intra_to_inter": {"canon_mu_schedule": "cosine_intra_to_inter", "canon_cosine_cycles": 1},
    "two updates per rollout": {"num_iterations": 2},
    "a rollout in two parts, twice": {"num_iterations": 2, "steps_per_generation": 2, "canon_metric": "random"},
    "two rollouts per step": {"steps_per_generation": 1, "gradient_accumulation_steps": 2},
    # one of the two steps comes before the checkpoint
    "logs across steps": {"num_iterations": 2, "logging_steps": 2},
    "logs of a policy loss across steps": {"policy_loss": "kl_cov", "num_iterations": 2, "logging_steps": 2},
    "reference model": {"num_iterations": 2, "beta": 0.05},
    "a reference that follows": {"beta": 0.05, "sync_ref_model": True, "ref_model_sync_steps": 2},
    "adaptive entropy": {"use_adaptive_entropy": True, "entropy_target": 1.0, "entropy_coef_delta": 0.01},
}


def train(folder, steps=6, resume=None, **options):
    options = {"max_steps": steps, "save_strategy": "steps", "save_steps": 1} | options
    trainer = make_trainer(folder, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_resumes(tmp_path, steps, at, **options):
    whole = train(tmp_path / "whole", **options)
    for step in at:
        folder = tmp_path / f"from_{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        # Nothing but the checkpoint may carry over: disturb every global random state.
        torch.manual_seed(step)
        resumed = train(folder, resume=str(folder / f"checkpoint-{step}"), **options)
        assert resumed.state.global_step == steps
        assert_same_parameters(parameters(resumed), parameters(whole))
        assert logged(resumed) == logged(whole)


@pytest.mark.parametrize("case", CASES)
def test_resume_in_the_middle(tmp_path, case):
    assert_resumes(tmp_path, 6, at=[3], **CASES[case])


def test_resume_at_any_step(tmp_path):
    options = {"num_iterations": 2, "steps_per_generation": 2, "canon_mu_schedule": "inter_to_intra"}
    assert_resumes(tmp_path, 6, at=[1, 2, 3, 4, 5], **options)


def test_resume_in_a_later_epoch(tmp_path):
    """The second epoch has a different order of prompts."""
    trainer_options = {"train_dataset": prompts(6)}  # three rollouts per epoch
    options = {"trainer_options": trainer_options, "steps": 7, "max_steps": 7}
    assert_resumes(tmp_path, at=[3, 4], **options)


def test_the_completions_table_of_the_rollout_in_flight(tmp_path):
    options = {"num_iterations": 2, "log_completions": True}
    whole = completions_table(train(tmp_path / "whole", steps=2, **options))
    shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / "resumed" / "checkpoint-1")
    checkpoint = str(tmp_path / "resumed" / "checkpoint-1")
    resumed = completions_table(train(tmp_path / "resumed", steps=2, resume=checkpoint, **options))
    assert len(whole["advantage"]) == 8
    assert resumed == whole


def test_numpy_numbers_in_the_completions_table(tmp_path):
    def with_columns(completions, log_extra, **kwargs):
        log_extra("letters", [numpy.int64(len(text)) for text in completions])
        log_extra("share", list(numpy.linspace(0, 1, len(completions))))
        return [float(len(text) % 2) for text in completions]

    options = {"num_iterations": 2, "log_completions": True, "trainer_options": {"reward_funcs": with_columns}}
    train(tmp_path, steps=2, **options)
    resumed = train(tmp_path, steps=2, resume=str(tmp_path / "checkpoint-1"), **options)
    assert completions_table(resumed)["share"] == pytest.approx(numpy.linspace(0, 1, 8).tolist())


def test_the_table_is_saved_only_when_it_is_logged(tmp_path):
    train(tmp_path, steps=1)
    state = torch.load(tmp_path / "checkpoint-1" / "rollout_state_0.pt", weights_only=True)
    assert (state["table"], state["table_columns"]) == ({}, {})


def test_another_batch_size_is_resumed_with_a_warning(tmp_path, caplog):
    train(tmp_path, steps=3, num_iterations=2)
    train(tmp_path, steps=3, num_iterations=3, resume_with_changes=True, resume=str(tmp_path / "checkpoint-1"))
    assert "sampling the unfinished rollout again" in caplog.text


def test_counting_continues_when_a_rollout_is_sampled_again(tmp_path):
    train(tmp_path, steps=4, num_iterations=2, canon_metric="random")
    # With one update per rollout, the two updates were two rollouts.
    options = {"max_steps": 4, "canon_metric": "random", "resume_with_changes": True}
    trainer = make_trainer(tmp_path, **options)
    rollouts = keep_rollouts(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [rollout.step for rollout in rollouts] == [2, 3]


def test_a_checkpoint_of_another_trainer_is_resumed_with_a_warning(tmp_path, caplog):
    train(tmp_path, steps=3, num_iterations=2)
    (tmp_path / "checkpoint-1" / "rollout_state_0.pt").unlink()
    train(tmp_path, steps=3, num_iterations=2, resume=str(tmp_path / "checkpoint-1"))
    assert "sampling the unfinished rollout again" in caplog.text


def test_only_the_model_is_saved_on_request(tmp_path):
    train(tmp_path, steps=1, save_only_model=True)
    assert not (tmp_path / "checkpoint-1" / "rollout_state_0.pt").exists()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").exists()


def prompts_of_each_rollout():
    """A reward function, and the prompts that it receives per rollout, without repetitions."""
    seen = []

    def keeps(prompts, completions, **kwargs):
        seen.append(tuple(prompts[::4]))
        return TASK.reward(completions=completions, **kwargs)

    return keeps, seen


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_stream_in_any_of_its_passes(tmp_path, shuffle):
    """12 rows give six rollouts per pass, so the 14 steps end in the third pass."""

    def run(folder, resume=None):
        reward, seen = prompts_of_each_rollout()
        options = {"max_completion_length": 4, "shuffle_dataset": shuffle}
        data = {"reward_funcs": reward, "train_dataset": prompts(12).to_iterable_dataset()}
        return train(folder, steps=14, resume=resume, trainer_options=data, **options), seen

    whole, seen = run(tmp_path)
    assert [len(set(sum(seen[first : first + 6], ()))) for first in (0, 6)] == [12, 12]
    assert (seen[:6] == seen[6:12]) is not shuffle
    for at in (5, 6, 7, 8, 12, 13):
        torch.manual_seed(at)
        resumed, seen_later = run(tmp_path, str(tmp_path / f"checkpoint-{at}"))
        assert seen_later == seen[at:], at
        assert_same_parameters(parameters(resumed), parameters(whole))
        assert logged(resumed) == logged(whole)


def test_a_stream_that_is_resumed_with_more_steps(tmp_path):
    """transformers stores the position in a pass as a share of all steps."""

    def run(steps, resume=None, **options):
        reward, seen = prompts_of_each_rollout()
        data = {"reward_funcs": reward, "train_dataset": prompts(12).to_iterable_dataset()}
        train(tmp_path, steps, resume, max_completion_length=4, trainer_options=data, **options)
        return seen

    seen = run(8)
    longer = run(12, resume=str(tmp_path / "checkpoint-4"), resume_with_changes=True)
    assert longer[:4] == seen[4:]
    assert set(sum(longer[2:], ())) == set(sum(seen[:6], ()))


@pytest.mark.parametrize("stream", [False, True])
def test_a_finished_run_is_not_trained_further(tmp_path, stream):
    """A job script that runs again must not train one more step."""
    data = prompts(12).to_iterable_dataset() if stream else prompts(12)
    options = {"trainer_options": {"train_dataset": data}, "steps": 2}
    ended = train(tmp_path, **options)
    resumed = train(tmp_path, resume=True, **options)
    assert resumed.state.global_step == 2
    assert_same_parameters(parameters(resumed), parameters(ended))
    assert logged(resumed) == logged(ended)


def test_random_numbers_of_python_and_numpy(tmp_path):
    def by_chance(completions, **kwargs):
        return [random.random() + numpy.random.rand() for _ in completions]

    options = {"trainer_options": {"reward_funcs": by_chance}, "max_completion_length": 4}
    whole = train(tmp_path, steps=3, **options)
    random.seed(5)
    numpy.random.seed(5)
    resumed = train(tmp_path, steps=3, resume=str(tmp_path / "checkpoint-1"), **options)
    assert_same_parameters(parameters(resumed), parameters(whole))
    assert logged(resumed) == logged(whole)


class Falls(TrainerCallback):
    """Lowers the weight of the second reward at every step."""

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.reward_weights = self.trainer.reward_weights * torch.tensor([1.0, 0.5])


class Stops(TrainerCallback, ExportableState):
    """Counts the steps that it has seen, and stops at the third."""

    def __init__(self):
        self.seen = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.seen += 1
        control.should_training_stop |= self.seen >= 3

    def state(self):
        return {"args": {}, "attributes": {"seen": self.seen}}


def test_changes_and_state_of_callbacks_are_resumed(tmp_path):
    def run(folder, resume=None):
        data = {"reward_funcs": [TASK.reward, length_reward], "callbacks": [Falls(), Stops()]}
        options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, "reward_weights": [1.0, 1.0]}
        trainer = make_trainer(folder, trainer_options=data, **options)
        Falls.trainer = trainer
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path)
    assert whole.state.global_step == 3
    assert whole.reward_weights.tolist() == [1.0, 0.125]
    resumed = run(tmp_path, str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 3
    assert resumed.reward_weights.tolist() == [1.0, 0.125]
    assert_same_parameters(parameters(resumed), parameters(whole))
    assert logged(resumed) == logged(whole)


def evaluations(trainer):
    return [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("save", ["steps", "epoch"])
def test_the_end_of_an_epoch_is_evaluated_once(tmp_path, stream, save):
    """It draws random numbers, so a run that skips or repeats it would sample other responses afterwards."""
    rows = prompts(4)  # two rollouts per epoch
    data = {"train_dataset": rows.to_iterable_dataset() if stream else rows, "eval_dataset": prompts(2)}
    options = {"eval_strategy": "epoch", "save_strategy": save, "trainer_options": data, "max_completion_length": 4}
    options |= {"metric_for_best_model": "reward", "greater_is_better": True}
    whole = train(tmp_path, steps=5, **options)
    for at in (2, 3, 4) if save == "steps" else (2, 4):
        torch.manual_seed(at)
        resumed = train(tmp_path, steps=5, resume=str(tmp_path / f"checkpoint-{at}"), **options)
        assert_same_parameters(parameters(resumed), parameters(whole))
        assert logged(resumed) == logged(whole), at
        assert evaluations(resumed) == evaluations(whole), at
        best = [(t.state.best_metric, t.state.best_global_step) for t in (whole, resumed)]
        assert best[0] == best[1] and best[0][0] is not None


def test_a_stream_whose_pass_ends_within_an_optimiser_step(tmp_path):
    """12 rows are six micro-batches, and a step takes four: the gradients of two wait for the next pass."""
    data = {"train_dataset": prompts(12).to_iterable_dataset()}
    options = {"trainer_options": data, "gradient_accumulation_steps": 4, "steps_per_generation": 1}
    options |= {"max_completion_length": 4, "save_strategy": "epoch"}
    whole = train(tmp_path, steps=3, **options)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    resumed = train(tmp_path, steps=3, resume=str(tmp_path / "checkpoint-2"), **options)
    assert_same_parameters(parameters(resumed), parameters(whole))
    assert logged(resumed) == logged(whole)


def test_adapters_and_their_reference_adapters(tmp_path):
    """For a model with trained adapters TRL's reference is a copy of them, which no checkpoint contains."""

    def make(folder, **options):
        torch.manual_seed(0)
        tuned = get_peft_model(base_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        args, tokenizer = (
            CANONConfig(str(folder), **(OPTIONS | options)),
            AutoTokenizer.from_pretrained(TASK.model_path),
        )
        return CANONTrainer(tuned, TASK.reward, args, prompts(), processing_class=tokenizer)

    whole, *_ = assert_resumes_anywhere(make, tmp_path, num_iterations=2, beta=0.1)
    assert {"default", "ref"} <= whole.model.peft_config.keys()
    assert logged(whole)[-1]["kl"] > 0

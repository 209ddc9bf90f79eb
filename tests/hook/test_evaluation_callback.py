"""Evaluation during training: what it logs and where, and that training is unaffected."""

import threading

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import (
    TASK,
    assert_same_parameters,
    base_model,
    logged,
    make_trainer,
    parameters,
    prompts,
)
from transformers import AutoTokenizer, TrainerCallback

from canon_trl.evaluation import EvaluationCallback, avg_at_k, pass_at_k
from canon_trl.evaluation.callback import decoder
from canon_trl.sampling.samplers import TransformersSampler

OPTIONS = {"num_samples": 4, "pass_ks": [2, 4], "majority_ks": [4], "answer_of": TASK.answer_of, "chunk_prompts": 3}


def add(trainer, **options):
    callback = EvaluationCallback(trainer, TASK.dataset("test", 8), TASK.reward, **{**OPTIONS, **options})
    trainer.add_callback(callback)
    return callback


def evaluations(trainer):
    return [entry for entry in trainer.state.log_history if "evaluation/avg@4" in entry]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("evaluated"), max_steps=3, logging_steps=2)
    callback = add(trainer, every_steps=2)
    before = callback.evaluate()
    trainer.train()
    return trainer, callback, before


def test_evaluation_does_not_affect_training(trained, tmp_path):
    """Parameters agree bit for bit, and so does the log apart from the evaluation's entries."""
    trainer, _, _ = trained
    plain = make_trainer(tmp_path, max_steps=3, logging_steps=2)
    plain.train()
    assert_same_parameters(parameters(trainer), parameters(plain))
    assert len(logged(plain)) >= 1 and "rewards/accuracy/mean" in logged(plain)[0]
    assert logged(trainer) == logged(plain)
    assert len(trainer.state.log_history) == len(plain.state.log_history) + len(evaluations(trainer))
    assert trainer.model.training


def test_trls_own_evaluation_only_moves_on_the_random_numbers(tmp_path):
    """With `eval_strategy`, training continues with other random numbers, as with another seed, and nothing else."""

    def run(name, *, evaluates, restores=False):
        given = {"eval_dataset": TASK.dataset("test", 8)} if evaluates else {}
        options = {"eval_strategy": "steps", "eval_steps": 1} if evaluates else {}
        trainer = make_trainer(tmp_path / name, trainer_options=given, **options)
        if restores:
            evaluate = trainer.evaluate

            def and_restore(*args, **kwargs):
                with torch.random.fork_rng(devices=[]):
                    return evaluate(*args, **kwargs)

            trainer.evaluate = and_restore
        trainer.train()
        return parameters(trainer)

    plain = run("plain", evaluates=False)
    assert_same_parameters(run("restored", evaluates=True, restores=True), plain)
    with pytest.raises(AssertionError):
        assert_same_parameters(run("evaluated", evaluates=True), plain)


def test_the_steps_that_are_evaluated(trained):
    trainer, callback, before = trained
    entries = evaluations(trainer)
    assert [entry["step"] for entry in entries] == [0, 2, 3]
    for entry, want in ((entries[0], before), (entries[-1], callback.evaluate())):
        assert {name: value for name, value in entry.items() if name.startswith("evaluation/")} == want
    assert entries[0]["evaluation/entropy"] != entries[-1]["evaluation/entropy"]


def test_the_numbers_are_those_of_the_responses(trained):
    """Compared with responses of the final model, sampled and scored by hand."""
    trainer, callback, _ = trained
    got = callback.evaluate()
    tokenizer = AutoTokenizer.from_pretrained(TASK.model_path)
    data = TASK.dataset("test", 8)
    sample = TransformersSampler(trainer.model, tokenizer, num_samples=4, max_new_tokens=12, entropies=True)
    rewards, responses = [], []
    for chunk in range(3):
        rows = data.select(range(3 * chunk, min(3 * chunk + 3, 8)))
        for answer, given in zip(rows["answer"], sample(rows["prompt"][:], chunk), strict=True):
            texts = tokenizer.batch_decode([response.ids for response in given], skip_special_tokens=True)
            rewards.append(TASK.reward(texts, answer=[answer] * 4))
            responses += given
    trainer.model.train()
    rewards = torch.tensor(rewards)
    correct = rewards.sum(dim=1)
    lengths = torch.tensor([len(response.ids) for response in responses], dtype=torch.float64)
    entropies = torch.tensor([response.entropy for response in responses], dtype=torch.float64)
    right = rewards.flatten() == 1
    assert got["evaluation/avg@4"] == avg_at_k(4, correct).mean()
    assert got["evaluation/pass@2"] == pass_at_k(4, correct, 2).mean()
    assert got["evaluation/length_right"] == lengths[right].mean()
    assert got["evaluation/length_wrong"] == lengths[~right].mean()
    assert got["evaluation/truncated"] == sum(response.truncated for response in responses) / 32 > 0
    assert got["evaluation/entropy"] == pytest.approx(((entropies * lengths).sum() / lengths.sum()).item())
    nats = entropies * lengths
    assert got["evaluation/entropy_right"] == pytest.approx((nats[right].sum() / lengths[right].sum()).item())
    assert got["evaluation/entropy_wrong"] == pytest.approx((nats[~right].sum() / lengths[~right].sum()).item())
    assert got["evaluation/tokens_per_right_answer"] == pytest.approx((lengths.sum() / right.sum()).item())
    assert 0 < got["evaluation/majority@4"] <= 1


OF_SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 3}


def test_sampling_options_take_effect(trained):
    trainer, _, _ = trained
    data, tokenizer = TASK.dataset("test", 8), AutoTokenizer.from_pretrained(TASK.model_path)
    options = {"num_samples": 4, **OF_SAMPLING}
    shared = {"chunk_prompts": 8, "seed": 3, "max_completion_length": 10}
    got = EvaluationCallback(trainer, data, TASK.reward, **options, **shared).evaluate()
    sample = TransformersSampler(trainer.model, tokenizer, max_new_tokens=10, entropies=True, **options)
    responses = [response for given in sample(data["prompt"][:], 3 * 1_000_003) for response in given]
    trainer.model.train()
    lengths = torch.tensor([len(response.ids) for response in responses], dtype=torch.float64)
    entropies = torch.tensor([response.entropy for response in responses], dtype=torch.float64)
    assert got["evaluation/length"] == lengths.mean()
    assert got["evaluation/entropy"] == pytest.approx(((entropies * lengths).sum() / lengths.sum()).item())


def test_weights_and_the_time_limit_of_reward_functions(trained):
    def one(completions, **kwargs):
        return [1.0] * len(completions)

    def never(completions, **kwargs):
        threading.Event().wait()

    trainer, data = trained[0], TASK.dataset("test", 2)
    weighted = {"reward_weights": [0.25, 2.0], "threshold": 2.25}
    assert EvaluationCallback(trainer, data, [one, one], **weighted).evaluate()["evaluation/avg@8"] == 1
    limited = EvaluationCallback(trainer, data, never, reward_time_limit=0.2)
    with pytest.raises(TimeoutError, match=r"'never' took longer than reward_time_limit=0\.2 seconds"):
        limited.evaluate()


def test_undefined_numbers_are_left_out(tmp_path):
    trainer = make_trainer(tmp_path)
    got = add(trainer, threshold=2.0).evaluate()
    assert got["evaluation/avg@4"] == got["evaluation/pass@4"] == 0
    assert not {"evaluation/length_right", "evaluation/tokens_per_right_answer"} & got.keys()
    assert got["evaluation/length_wrong"] == got["evaluation/length"]


def test_a_response_with_all_of_its_rewards_is_right(tmp_path):
    """0.7 + 0.2 + 0.1 is 0.9999999999999999 in floats."""

    def always(completions, **kwargs):
        return [1.0] * len(completions)

    options = {"reward_weights": [0.7, 0.2, 0.1], "num_samples": 2}
    callback = EvaluationCallback(make_trainer(tmp_path), TASK.dataset("test", 4), [always] * 3, **options)
    assert callback.evaluate()["evaluation/avg@2"] == 1.0


def test_a_run_continues_when_nothing_can_be_scored(tmp_path):
    """Before the first step this is an error; later it must not lose the trained model."""

    def scores_nothing(completions, **kwargs):
        return [None] * len(completions)

    trainer = make_trainer(tmp_path, max_steps=2)
    callback = EvaluationCallback(trainer, TASK.dataset("test", 4), scores_nothing, at_start=False)
    with pytest.raises(ValueError, match="none of the 4 prompts was scored"):
        callback.evaluate()
    trainer.add_callback(callback)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "evaluation/unscored_prompts" in entry]
    assert (entry["step"], entry["evaluation/unscored_prompts"]) == (2, 4)
    assert not any(name.startswith("evaluation/avg") for name in entry)


def test_a_resumed_run_does_not_evaluate_its_start_again(tmp_path):
    save = {"save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path, max_steps=2, **save)
    add(trainer, every_steps=1)
    trainer.train()
    resumed = make_trainer(tmp_path, max_steps=2, **save)
    add(resumed, every_steps=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert [entry["step"] for entry in evaluations(resumed)] == [0, 1, 2]
    timeless = [{k: v for k, v in entry.items() if "time" not in k} for entry in evaluations(trainer)]
    assert [{k: v for k, v in entry.items() if "time" not in k} for entry in evaluations(resumed)] == timeless


class Stops(TrainerCallback):
    """Stops training at a given event after step 2."""

    def __init__(self, event):
        setattr(self, event, self.stop)

    def stop(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


EVERY_EPOCH = {"max_steps": -1, "num_train_epochs": 5, "eval_strategy": "epoch"}  # two steps per epoch, see below


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("event", "options"),
    [
        ("on_step_end", {}),
        ("on_log", {}),
        ("on_evaluate", {"eval_strategy": "steps", "eval_steps": 1}),
        ("on_save", {"save_strategy": "steps", "save_steps": 1}),
        ("on_epoch_end", EVERY_EPOCH),
        ("on_evaluate", EVERY_EPOCH),  # when the last epoch has ended for all callbacks
    ],
)
def test_a_run_that_another_callback_stops_is_evaluated_at_its_end(event, options, first, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    data = {"train_dataset": prompts(4), "eval_dataset": prompts(2)}
    options = {"max_steps": 6, "report_to": ["tensorboard"]} | options
    trainer = make_trainer(tmp_path / "run", trainer_options=data, **options)
    if first:
        trainer.add_callback(Stops(event))
    callback = add(trainer, at_start=False, pass_ks=[], majority_ks=[])
    if not first:
        trainer.add_callback(Stops(event))
    trainer.train()
    assert trainer.state.global_step == 2
    assert [entry["step"] for entry in evaluations(trainer)] == [2]
    assert evaluations(trainer)[0]["evaluation/entropy"] == callback.evaluate()["evaluation/entropy"]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [scalar.step for scalar in events.Scalars("train/evaluation/avg@4")] == [2]
    assert len(list((tmp_path / "events").iterdir())) == 1, "written before the log was closed"


@pytest.mark.parametrize("options", [{"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 2}])
def test_the_end_is_evaluated_once(options, tmp_path):
    """Four steps, also where the end is an evaluation step and the end of an epoch."""
    trainer = make_trainer(tmp_path, trainer_options={"train_dataset": prompts(4)}, **options)
    add(trainer, every_steps=2)
    trainer.train()
    assert trainer.state.global_step == 4
    assert [entry["step"] for entry in evaluations(trainer)] == [0, 2, 4]
    trainer.train()  # from the beginning
    assert [entry["step"] for entry in evaluations(trainer)] == [0, 2, 4]


def test_evaluation_at_the_end_can_be_switched_off(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3)
    add(trainer, at_end=False)
    trainer.add_callback(Stops("on_step_end"))
    trainer.train()
    assert [entry["step"] for entry in evaluations(trainer)] == [0]


@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}, {"peft": True}])
def test_evaluation_does_not_affect_training_of_other_models(options, tmp_path):
    peft = options.pop("peft", False)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False) if peft else None

    def trained(folder, *, evaluated):
        torch.manual_seed(0)  # for the adapter
        trainer = make_trainer(folder, max_steps=2, trainer_options={"peft_config": config}, **options)
        if evaluated:
            add(trainer, every_steps=1)
        trainer.train()
        return trainer

    trainer, plain = trained(tmp_path / "evaluated", evaluated=True), trained(tmp_path / "plain", evaluated=False)
    assert_same_parameters(parameters(trainer), parameters(plain))
    assert logged(trainer) == logged(plain)
    entropies = [entry["evaluation/entropy"] for entry in evaluations(trainer)]
    assert len(set(entropies)) == 3, "each evaluation must use the current model"


def test_tensorboard_has_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = make_trainer(tmp_path / "run", max_steps=2, report_to=["tensorboard"])
    add(trainer, every_steps=1)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    tags = events.Tags()["scalars"]
    for name in ("avg@4", "pass@2", "majority@4", "entropy", "length", "truncated"):
        assert f"train/evaluation/{name}" in tags
        scalars = [(scalar.step, scalar.value) for scalar in events.Scalars(f"train/evaluation/{name}")]
        want = [(entry["step"], entry[f"evaluation/{name}"]) for entry in evaluations(trainer)]
        assert [step for step, _ in scalars] == [0, 1, 2]
        assert [value for _, value in scalars] == pytest.approx([value for _, value in want], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every_steps": 0}, ValueError, "every_steps=0 must be at least 1"),
        ({"num_samples": 0}, ValueError, "num_samples=0 must be at least 1"),
        ({"at_start": False, "at_end": False}, ValueError, "there would be no evaluation"),
        ({"pass_ks": [5]}, ValueError, r"pass_ks has \[5\]; each must lie between 1 and num_samples=4"),
        ({"temperature": 0}, ValueError, "temperature=0 must be positive"),
        ({"top_p": 1.5}, ValueError, r"top_p=1.5 must lie in \(0, 1\]"),
        ({"answer_of": None}, ValueError, r"majority_ks=\[4\] needs answer_of"),
        ({"reward_weights": [1, 2]}, ValueError, r"reward_weights=\[1, 2\] must be one for each of the 1 functions"),
    ],
)
def test_bad_options(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        add(make_trainer(tmp_path), **options)


def test_bad_arguments(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"dataset has 1 rows and the columns \['question'\]; it needs prompts"):
        EvaluationCallback(trainer, Dataset.from_dict({"question": ["?"]}), TASK.reward)
    with pytest.raises(ValueError, match="dataset: the prompt of row 1 is None; fix it or remove the row"):
        EvaluationCallback(trainer, Dataset.from_dict({"prompt": ["1?", None]}), TASK.reward)
    with pytest.raises(ValueError, match=r"dataset has the columns \['prompts'\], but reward functions take other"):
        EvaluationCallback(trainer, Dataset.from_dict({"prompt": ["1?"], "prompts": ["1?"]}), TASK.reward)
    with pytest.raises(TypeError, match=r"a DatasetDict with the splits \['test'\]; it must be a Dataset"):
        EvaluationCallback(trainer, DatasetDict(test=prompts(4)), TASK.reward)
    with pytest.raises(TypeError, match="dataset is a IterableDataset; it must be a Dataset"):
        EvaluationCallback(trainer, prompts(4).to_iterable_dataset(), TASK.reward)
    with pytest.raises(TypeError, match="reward_funcs has 'judge', which is not a reward function"):
        EvaluationCallback(trainer, prompts(4), ["judge"])
    chat = Dataset.from_list([{"prompt": [{"role": "user", "content": "1+1?"}]}])
    with pytest.raises(ValueError, match="the prompts are conversations, but the trainer's tokenizer has no chat"):
        EvaluationCallback(trainer, chat, TASK.reward)
    tuned = get_peft_model(base_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="models with PROMPT_TUNING cannot be evaluated during training"):
        decoder(tuned)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="a model that FSDP shards cannot be evaluated during training"):
        EvaluationCallback(trainer, prompts(4), TASK.reward)

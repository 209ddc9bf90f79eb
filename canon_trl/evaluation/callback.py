"""Evaluate a model during training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel, PeftType
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.models.utils import unwrap_model_for_generation

from canon_trl.evaluation.responses import Judged, ResponseRecorder
from canon_trl.sampling.chunks import chunk_records, num_chunks
from canon_trl.sampling.prompt_checks import check_columns, check_prompts
from canon_trl.sampling.samplers import TransformersSampler, check_distribution, check_model
from canon_trl.sampling.scoring import Scorer
from canon_trl.trl_release import KEEPS_CHECKPOINTING_OPTIONS


class EvaluationCallback(TrainerCallback):
    """Samples n responses to each of a few prompts at regular intervals during training and logs how good they are.

    It logs `evaluation/avg@n`, `evaluation/pass@k`, `evaluation/majority@k`, `evaluation/length`, `length_right` and
    `length_wrong` in tokens, `truncated` (share of the responses), `entropy`, `entropy_right` and `entropy_wrong` in
    nats, `tokens_per_right_answer` and `unscored_prompts`; see [`~canon_trl.evaluation.responses.Judged`]. The trainer
    logs them, so they reach every tracker in `report_to`. Undefined numbers are left out, such as the length of right
    responses if none is right; if no response was scored, only `unscored_prompts` is logged. TensorBoard and Trackio
    show them under `train/`, where transformers puts every name that does not begin with `eval_` or `test_`.

    Prompts are tokenized as in training, with the trainer's tokenizer, chat template and `chat_template_kwargs`, and
    responses end at the same tokens and texts (vLLM's `stop`). The sampling distribution is the evaluation's own: see
    `temperature` and the options after it.

    Training continues as it would without evaluation: tokens are drawn from separate generators, the same at every
    evaluation, and the metrics that the trainer collects for its next log entry do not change. Only reward functions
    that use the global generators of Python, numpy or torch would affect training.

    Ranks take prompts in turn, one chunk each, and the responses do not depend on the number of ranks. The training
    model samples them, even if training samples with vLLM. Under ZeRO-3 its parameters are gathered on every rank
    for this time, as TRL does for generation.

        trainer.add_callback(EvaluationCallback(trainer, task.dataset("test", 64), task.reward, every_steps=10))

    Args:
        trainer: a trainer of TRL; its model and tokenizer are used.
        dataset: the prompts, in a column `prompt`, and the columns that reward functions read.
        reward_funcs: one or several functions in TRL's signature; reward models are not supported.
        every_steps: optimiser steps between evaluations; `None` to evaluate only at the start and the end.
        at_start: whether to evaluate before the first step; a resumed run skips it.
        at_end: whether to evaluate after the last step, also if another callback ends the run. If the run ends in the
            evaluation after an epoch, `load_best_model_at_end` has already loaded the best model.
        num_samples: responses per prompt, n.
        pass_ks: the values of k for pass@k.
        majority_ks: the values of k for majority@k, which needs `answer_of`.
        answer_of: extracts the answer from a response's text, or returns `None`.
        max_completion_length: maximum number of tokens per response; default the trainer's.
        temperature, top_p, top_k, min_p, repetition_penalty: sampling options, independent of those of training;
            `top_k=0` samples from all tokens.
        reward_weights: one per function; default 1.
        reward_time_limit: maximum number of seconds for a call of a reward function; default no limit.
        threshold: minimum weighted reward of a right response, see [`~canon_trl.evaluation.responses.is_right`].
        chunk_prompts: prompts that a rank samples at a time; with fewer chunks than ranks, some ranks are idle.
        seed: seed of the sampling.

    Raises:
        ValueError: an option is out of range; the dataset is empty, or its prompts are missing or cannot be tokenized;
            FSDP shards the model, so ranks cannot sample independently; PEFT's prompt tuning adapts the model, and
            only its own `generate` inserts the prompts; or the trainer has tools, environments or a `rollout_func`.
        TypeError: a reward function is not a function; the dataset is not a `Dataset`; the trainer has a processor
            instead of a tokenizer; or the model takes no `position_ids`, or its cache cannot drop rows.
    """

    def __init__(
        self,
        trainer: Trainer,
        dataset: Dataset,
        reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]],
        *,
        every_steps: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
        num_samples: int = 8,
        pass_ks: Sequence[int] = (),
        majority_ks: Sequence[int] = (),
        answer_of: Callable[[str], str | None] | None = None,
        max_completion_length: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        reward_weights: Sequence[float] | None = None,
        reward_time_limit: float | None = None,
        threshold: float = 1.0,
        chunk_prompts: int = 8,
        seed: int = 0,
    ) -> None:
        args: Any = trainer.args  # mypy does not know the options of TRL's generating trainers
        length = args.max_completion_length if max_completion_length is None else max_completion_length
        for name, value in {
            "every_steps": 1 if every_steps is None else every_steps,
            "num_samples": num_samples,
            "max_completion_length": length,
            "chunk_prompts": chunk_prompts,
        }.items():
            if value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1")
        check_distribution(temperature, top_p, top_k, min_p, repetition_penalty)
        if every_steps is None and not (at_start or at_end):
            raise ValueError("every_steps=None, at_start=False and at_end=False: there would be no evaluation")
        for name, ks in {"pass_ks": pass_ks, "majority_ks": majority_ks}.items():
            if wrong := [k for k in ks if not 1 <= k <= num_samples]:
                raise ValueError(f"{name} has {wrong}; each must lie between 1 and num_samples={num_samples}")
        if majority_ks and answer_of is None:
            raise ValueError(f"majority_ks={list(majority_ks)} needs answer_of")
        if not isinstance(dataset, Dataset):
            splits = f" with the splits {[*dataset]}" if isinstance(dataset, dict) else ""
            raise TypeError(f"dataset is a {type(dataset).__name__}{splits}; it must be a Dataset")
        if "prompt" not in dataset.column_names or len(dataset) == 0:
            raise ValueError(
                f"dataset has {len(dataset)} rows and the columns {dataset.column_names}; it needs prompts in 'prompt'"
            )
        check_columns(dataset.column_names, "dataset")
        check_prompts(dataset, "dataset")
        tokenizer = trainer.processing_class
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(f"the trainer has a {type(tokenizer).__name__}; evaluation needs a tokenizer")
        if not isinstance(dataset[0]["prompt"], str) and tokenizer.chat_template is None:
            raise ValueError("the prompts are conversations, but the trainer's tokenizer has no chat template")
        for name in ("tools", "environment_factories", "rollout_func"):
            if getattr(trainer, name, None):
                raise ValueError(
                    f"the trainer has {name}, which evaluation does not support: prompts and responses would differ "
                    "from those of training"
                )
        if trainer.is_fsdp_enabled:
            raise ValueError("a model that FSDP shards cannot be evaluated during training; run `canon-trl evaluate`")
        check_model(decoder(trainer.model))
        functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
        self._trainer = trainer
        self._dataset = dataset
        self._record = ResponseRecorder(Scorer(functions, tokenizer, reward_weights, reward_time_limit), answer_of)
        self._every_steps = every_steps
        self._at_start = at_start
        self._at_end = at_end
        self._pass_ks = pass_ks
        self._majority_ks = majority_ks
        self._sampling: dict[str, Any] = {
            "num_samples": num_samples,
            "max_new_tokens": length,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
        }
        self._threshold = threshold
        self._chunk_prompts = chunk_prompts
        self._seed = seed
        self._evaluated = -1  # the last evaluated step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Move before the trackers, which close when training ends. A new list, since the handler iterates the old one.
        handler = self._trainer.callback_handler
        handler.callbacks = [self, *(callback for callback in handler.callbacks if callback is not self)]
        self._evaluated = state.global_step  # a resumed run has already evaluated this model
        if self._at_start and state.global_step == 0:
            self._log(control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        due = self._every_steps is not None and state.global_step % self._every_steps == 0
        if due or (self._at_end and state.global_step >= state.max_steps):
            self._log_once(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate if another callback has stopped the run, before the trainer may load the best model."""
        if self._at_end and control.should_training_stop:
            self._log_once(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate if the run was stopped later than that, in the evaluation after an epoch."""
        if self._at_end:
            self._log_once(state, control)

    def _log_once(self, state: TrainerState, control: TrainerControl) -> None:
        if state.global_step != self._evaluated:
            self._evaluated = state.global_step
            self._log(control)

    def _log(self, control: TrainerControl) -> None:
        metrics = self.evaluate()
        should_log = control.should_log
        # GRPOTrainer's own `log` would move the collected training metrics into this entry.
        Trainer.log(self._trainer, metrics)
        control.should_log = should_log  # logging resets it

    def evaluate(self) -> dict[str, float]:
        """Evaluate the current model and return the numbers by their names in the log. Every rank must call it."""
        trainer: Any = self._trainer
        accelerator = trainer.accelerator
        kept = {"gradient_checkpointing_kwargs": trainer.args.gradient_checkpointing_kwargs}
        kept = kept if KEEPS_CHECKPOINTING_OPTIONS else {}
        with unwrap_model_for_generation(trainer.model_wrapped, accelerator, **kept) as model:
            training = {module: module.training for module in model.modules()}
            # The same prompts and the same ends of responses as in training.
            wording = {"chat_template_kwargs": trainer.chat_template_kwargs}
            options = {**self._sampling, **wording, "stop_strings": stop_strings(trainer.args)}
            sample = TransformersSampler(decoder(model), trainer.processing_class, entropies=True, **options)
            record = replace(self._record, score=replace(self._record.score, **wording))
            sizes = {"chunk_size": self._chunk_prompts, "seed": self._seed}
            known = [
                (chunk, chunk_records(self._dataset, sample, record, chunk, **sizes))
                for chunk in range(num_chunks(self._dataset, self._chunk_prompts))
                if chunk % accelerator.num_processes == accelerator.process_index
            ]
            for module, was_training in training.items():
                module.training = was_training
        known = sorted(gather_object(known), key=lambda entry: entry[0])
        records = [record for _, records in known for record in records]
        scored = any(reward is not None for record in records for reward in record["rewards"])
        if trainer.state.global_step and not scored:  # do not stop a run that has trained; before that, raise
            return {"evaluation/unscored_prompts": float(len(records))}
        judged = Judged.of(records, threshold=self._threshold)
        numbers = {f"avg@{judged.num_samples}": judged.avg().mean()}
        numbers |= {f"pass@{k}": judged.pass_at(k).mean() for k in self._pass_ks}
        numbers |= {f"majority@{k}": judged.majority_at(k).mean() for k in self._majority_ks}
        described = {name: value for name, value in judged.describe().items() if "median" not in name}
        numbers |= described | {"unscored_prompts": judged.unscored_prompts}
        return {f"evaluation/{name}": float(value) for name, value in numbers.items() if value is not None}


def stop_strings(args: Any) -> list[str] | None:
    """Return the texts that end a response in training; only vLLM has such an option."""
    texts = (args.generation_kwargs or {}).get("stop")
    return [texts] if isinstance(texts, str) else texts


def decoder(model: Any) -> Any:
    """Return the model whose forward pass takes `position_ids`, including adapters such as LoRA."""
    if not isinstance(model, PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        kind = PeftType(model.active_peft_config.peft_type).value
        raise ValueError(f"models with {kind} cannot be evaluated during training")
    return model.get_base_model()

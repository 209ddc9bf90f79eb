"""Evaluation while a model is trained."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel
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
from canon_trl.sampling.samplers import TransformersSampler, check_distribution
from canon_trl.sampling.scoring import Scorer


class EvaluationCallback(TrainerCallback):
    """Samples n responses to each of a few prompts every so many optimiser steps and logs what they are worth.

    Logged are, by the trainer and so to all that `report_to` names: `evaluation/avg@n`, `evaluation/pass@k`,
    `evaluation/majority@k`, `evaluation/length`, `length_right` and `length_wrong` in tokens, `truncated` (share of
    the responses), `entropy` (nats), `tokens_per_right_answer` and `unscored_prompts`; see
    [`~canon_trl.evaluation.responses.Judged`]. A number that does not exist, such as the length of right responses
    where none is right, is left out; where nothing could be scored, all but `unscored_prompts`. TensorBoard and
    Trackio show them below `train/`, as transformers files everything whose name does not begin with `eval_` or
    `test_`.

    The model reads a prompt as it does in training, through the trainer's tokenizer, chat template and
    `chat_template_kwargs`, and a response ends where it does there, at the same tokens and texts (vLLM's `stop`).
    What tokens are drawn from is a matter of the evaluation: see `temperature` and what follows.

    Training continues as it would without an evaluation: tokens are drawn from generators of their own, the same at
    every evaluation, and the metrics that the trainer gathers for its next log entry stay as they are. Only reward
    functions that draw from Python's, numpy's or torch's global generators would change it.

    Ranks take prompts in turn, a chunk each, and what is sampled does not depend on how many ranks there are.
    Responses are sampled by the model that is trained, also where training samples with vLLM. Under ZeRO-3 its
    parameters are gathered on every rank for that time, as TRL does for generation.

        trainer.add_callback(EvaluationCallback(trainer, task.dataset("test", 64), task.reward, every_steps=10))

    Args:
        trainer: of TRL; its model and tokenizer are used.
        dataset: the prompts, in a column `prompt`, and what reward functions read.
        reward_funcs: one or several functions in TRL's signature; reward models are not.
        every_steps: optimiser steps between evaluations; `None` for none in between.
        at_start: whether to evaluate before the first step; not after a resumption.
        at_end: whether to evaluate after the last step, also where another callback ends the run. Where that happens
            in the evaluation after an epoch, `load_best_model_at_end` has put the best model in the place of the last.
        num_samples: responses to a prompt, n.
        pass_ks: the k of pass@k.
        majority_ks: the k of majority@k, which needs `answer_of`.
        answer_of: finds the answer in a response's text, or `None`.
        max_completion_length: tokens of a response at most; by default the trainer's.
        temperature, top_p, top_k, min_p, repetition_penalty: of the sampling, whatever training samples with;
            `top_k=0` samples from all tokens.
        reward_weights: one a function; default 1.
        reward_time_limit: seconds that a call of a reward function may take; default no limit.
        threshold: the least weighted reward of a right response, see [`~canon_trl.evaluation.responses.is_right`].
        chunk_prompts: prompts that a rank samples at a time; fewer chunks than ranks leave ranks idle.
        seed: of the sampling.

    Raises:
        ValueError: an option is out of range; the dataset is empty, or its prompts are missing or cannot be put into
            words; the model is sharded by FSDP, whose layers communicate, so that ranks cannot sample apart from each
            other; it is tuned by prompts (PEFT), which only its own `generate` puts in; or the trainer has tools,
            environments or a `rollout_func`.
        TypeError: a reward function is none; the dataset is none, or a stream, or several splits; the trainer has no
            tokenizer but a processor; or the model takes no
            `position_ids`.
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
        args: Any = trainer.args  # of TRL's trainers that generate
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
            raise ValueError("every_steps=None, at_start=False and at_end=False: nothing would be evaluated")
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
            raise TypeError(f"the trainer has a {type(tokenizer).__name__}; only text is evaluated, with a tokenizer")
        if not isinstance(dataset[0]["prompt"], str) and tokenizer.chat_template is None:
            raise ValueError("the prompts are conversations and the trainer's tokenizer has no chat template")
        for name in ("tools", "environment_factories", "rollout_func"):
            if getattr(trainer, name, None):
                raise ValueError(
                    f"the trainer has {name}, so its prompts and responses are not what sampling here would give: "
                    "nothing here describes a tool to the model, calls it, or starts an environment"
                )
        if trainer.is_fsdp_enabled:
            raise ValueError("models that FSDP shards cannot be evaluated while they train; run examples/evaluate.py")
        forward = decoder(trainer.model).forward
        if "position_ids" not in inspect.signature(forward).parameters:
            raise TypeError(
                f"{type(trainer.model).__name__} takes no position_ids; run examples/evaluate.py with vLLM"
            )
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
        self._evaluated = -1  # the step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Before what `report_to` names, which is closed when training ends. A new list, as this one is gone through.
        handler = self._trainer.callback_handler
        handler.callbacks = [self, *(callback for callback in handler.callbacks if callback is not self)]
        self._evaluated = state.global_step  # a resumed run has evaluated the model that it begins with
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
        """Where another callback has stopped the run, before the best model may take the place of the last one."""
        if self._at_end and control.should_training_stop:
            self._log_once(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Where it was stopped later than that, by the evaluation after an epoch."""
        if self._at_end:
            self._log_once(state, control)

    def _log_once(self, state: TrainerState, control: TrainerControl) -> None:
        if state.global_step != self._evaluated:
            self._evaluated = state.global_step
            self._log(control)

    def _log(self, control: TrainerControl) -> None:
        metrics = self.evaluate()
        should_log = control.should_log
        # GRPOTrainer's own `log` would put the training metrics of the entry to come into this one and forget them.
        Trainer.log(self._trainer, metrics)
        control.should_log = should_log  # which writing an entry resets

    def evaluate(self) -> dict[str, float]:
        """The numbers of the model as it is, by the names that they are logged under; called on all ranks alike."""
        trainer: Any = self._trainer
        accelerator = trainer.accelerator
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            accelerator,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model:
            training = {module: module.training for module in model.modules()}
            # Prompts are worded, and responses end, as in training.
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
        if trainer.state.global_step and not scored:  # no reason to lose what was trained; before that, it is one
            return {"evaluation/unscored_prompts": float(len(records))}
        judged = Judged.of(records, threshold=self._threshold)
        numbers = {f"avg@{judged.num_samples}": judged.avg().mean()}
        numbers |= {f"pass@{k}": judged.pass_at(k).mean() for k in self._pass_ks}
        numbers |= {f"majority@{k}": judged.majority_at(k).mean() for k in self._majority_ks}
        described = {name: value for name, value in judged.describe().items() if "median" not in name}
        numbers |= described | {"unscored_prompts": judged.unscored_prompts}
        return {f"evaluation/{name}": float(value) for name, value in numbers.items() if value is not None}


def stop_strings(args: Any) -> list[str] | None:
    """The texts that end a response in training, which only vLLM can have there."""
    texts = (args.generation_kwargs or {}).get("stop")
    return [texts] if isinstance(texts, str) else texts


def decoder(model: Any) -> Any:
    """The model whose pass takes `position_ids`; adapters such as LoRA are part of it."""
    if not isinstance(model, PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(f"{model.active_peft_config.peft_type} puts prompts in that cannot be evaluated in training")
    return model.get_base_model()

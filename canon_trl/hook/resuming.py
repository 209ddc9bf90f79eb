"""Save an unfinished rollout and the order of the prompts in checkpoints, and resume from them."""

import logging
import math
import os
from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, send_to_device
from datasets import IterableDataset
from torch import nn
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from canon_trl.config.run_length import micro_batches
from canon_trl.evaluation.run_report import RunReport
from canon_trl.guards.collapse import Collapse
from canon_trl.guards.constant_rewards import ConstantRewards
from canon_trl.guards.interrupts import finished_before_interrupt
from canon_trl.hook.checkpoints import (
    ROLLOUT_STATE,
    RUN_OPTIONS,
    find_together,
    mark_complete,
    options_of_run,
    passes_and_batches,
)
from canon_trl.hook.loss import Losses
from canon_trl.hook.reference_state import check_saved_reference, load_reference, save_reference
from canon_trl.hook.rollout_files import load_rollout, rollout_file, warn_of_missing_random_states, without_images
from canon_trl.hook.rollout_parts import plain
from canon_trl.hook.stage_log import StageLog

logger = logging.getLogger(__name__)

# The completions table in `_logs`: lists of text, and columns by name; images are not saved.
TABLE_TEXTS = ("prompt", "completion")
TABLE_COLUMNS = ("rewards", "extra")


class Resuming(Losses):
    """Saves and restores what TRL does not, so that a resumed run continues as if it had never stopped."""

    _has_trained = False
    _resume_with_changes = False
    _given_optimizer: Any = None
    _loss_to_log: tuple[float, int] | None = None  # the loss before a resume, and the step after which it is summed

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._prompt_sampler = super()._get_train_sampler(dataset)
        return self._prompt_sampler

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As TRL's, but `True` resumes from the latest complete checkpoint, and begins a run if there is none.

        Every call is a separate run, which takes over only the weights of the previous one.
        """
        found = find_together(
            resume_from_checkpoint,
            Path(self.args.output_dir),
            self._run_options(),
            allow_changes=self._resume_with_changes,
            failures=self._failures,
        )
        if found is not None and self.args.sync_ref_model:
            check_saved_reference(Path(found), allow_changes=self._resume_with_changes)
        if self._has_trained:
            self._reset_for_another_run()
        self._has_trained = True
        try:
            return super().train(found, *args, **kwargs)
        except BaseException:  # also Ctrl-C
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, RunReport):
                    callback.save_interrupted()
            raise
        finally:
            self._batch_source.release()

    def _reset_for_another_run(self) -> None:
        """Reset what TRL and this trainer carry from one rollout or optimiser step to the next."""
        self._step = self._steps_not_restored = 0  # so that training begins with a rollout
        self.entropy_coef, self._last_world_entropy = self.args.entropy_coef, math.inf  # of TRL's entropy bonus
        self._last_loaded_step = -1  # the optimiser step whose weights vLLM has
        for logged in (*self._metrics.values(), *self._logs.values(), self._pending_extra_logs, self._pending_metrics):
            logged.clear()
        self._constant_rewards = ConstantRewards(self.reward_func_names)
        self._collapse = Collapse()
        self._step_tokens = {}
        self._stage_log = StageLog(self.accelerator)
        self._batch_source.restart()
        self._weighting.restart()
        self.optimizer = self._given_optimizer

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Return the epoch to begin in, and the number of its batches that have been trained on."""
        begun = super()._init_training_state(max_steps, steps_per_epoch, epochs, checkpoint, trial)
        if checkpoint is None:
            return begun
        for callback in self.callback_handler.callbacks:  # transformers fails if the checkpoint has no state for one
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
        if self.state.global_step >= max_steps:  # transformers would train one more step
            return epochs, 0
        if not isinstance(self.train_dataset, IterableDataset) or self.args.ignore_data_skip:
            return begun
        return passes_and_batches(checkpoint, self.args.gradient_accumulation_steps)

    def _run_options(self) -> dict[str, Any]:
        return options_of_run(
            self.args,
            method=self._name,
            model=os.path.basename(self.model.config._name_or_path.rstrip("/")),
            metrics=list(self._response_metrics),
            reward_functions=self.reward_func_names,
            prompts=len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None,
        )

    @finished_before_interrupt()
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_folder = self._get_output_dir(trial=trial)
        checkpoint = Path(run_folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        # Older checkpoints stay until this one is complete.
        kept, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            if self.args.should_save:
                (checkpoint / RUN_OPTIONS).unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
            if not self.args.save_only_model:
                checkpoint.mkdir(parents=True, exist_ok=True)
                torch.save(self._rollout_state(), rollout_file(checkpoint, self.accelerator.process_index))
                if self.args.sync_ref_model:
                    save_reference(self._reference(), checkpoint, writes=self.args.should_save)
            super()._save_checkpoint(model, trial)
        except Exception as error:  # on a full disk OSError, RuntimeError of torch, or SafetensorError
            error.add_note(
                f"{checkpoint} is incomplete, so no run will resume from it; earlier checkpoints are unchanged"
            )
            raise
        finally:
            self.args.save_total_limit = kept
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(checkpoint, self._run_options())
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(checkpoint))
            best = self.state.best_model_checkpoint
            rotate_checkpoints(run_folder, save_total_limit=kept, best_model_checkpoint=best, use_mtime=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._restore_prompt_order()
            state, missing = load_rollout(checkpoint, self.accelerator.process_index, self._failures)
            self._restore_fresh_prompts(state)
            self._restore_steering(state.get("steering") if state is not None else None)
            self._restore_rollout(state, missing)
            if self.args.sync_ref_model:
                load_reference(self._reference(), Path(checkpoint))

    def _reference(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.ref_model)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called once on resume, right before the first training step."""
        if checkpoint is not None:
            warn_of_missing_random_states(checkpoint, self.accelerator)
        unreadable = f"a random state of {checkpoint} cannot be read; resume from an earlier checkpoint"
        with self._failures.shared(unreadable):  # the file may be damaged on one rank only
            super()._load_rng_state(checkpoint)
        if self._loss_to_log is not None:
            summed, self._globalstep_last_logged = self._loss_to_log
            self._tr_loss += summed
            self._total_loss_scalar -= summed  # `train` reports the loss of its own steps
            self._loss_to_log = None

    def _rollout_state(self) -> dict[str, Any]:
        """Return the unfinished rollout as tensors, numbers and text, so that loading it runs no code."""
        self._collect_statistics()
        texts: dict[str, list] = {}
        columns: dict[str, dict[str, list]] = {}
        if self.log_completions and self.accelerator.is_main_process:  # only this process reads the table
            texts = {name: [without_images(text) for text in self._logs[name]] for name in TABLE_TEXTS}
            texts["advantages"] = list(self._logs["advantages"])
            columns = {name: dict(self._logs[name]) for name in TABLE_COLUMNS}
        return {
            "sampling": self._layout(),
            "step": self._step,
            "width": self._rollout_width,
            "fresh_prompts": plain(self._batch_source.state_dict()),
            "steering": self._steering_state(),
            "in_flight": self._buffered_inputs if self._step % self._generate_every else None,
            "metrics": dict(self._metrics["train"]),
            "loss_to_log": (self._tr_loss.item(), self._globalstep_last_logged),
            "reward_weights": (self.args.reward_weights, self.reward_weights.tolist()),
            "constant_rollouts": self._constant_rewards.in_a_row,
            "policy_reward_first": self._collapse.first,
            "table": plain(texts),
            "table_columns": plain(columns),
        }

    def _layout(self) -> dict[str, int | str]:
        """Return the options that decide how a rollout is divided into files and micro-batches."""
        return {
            "num_processes": self.accelerator.num_processes,
            "per_device_train_batch_size": self.args.per_device_train_batch_size,
            "steps_per_generation": self.args.steps_per_generation,
            "num_iterations": self.num_iterations,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
        }

    def _restore_rollout(self, state: dict[str, Any] | None, missing: list[int]) -> None:
        self._steps_not_restored = micro_batches(
            self.state.global_step,
            per_epoch=self._epoch_length,
            accumulation=self.args.gradient_accumulation_steps,
        )
        self._loss_to_log = None
        if state is None or missing:
            logger.warning(
                "%s is missing for the ranks %s, as in a checkpoint of another trainer or of fewer processes: "
                "sampling the unfinished rollout again",
                ROLLOUT_STATE,
                missing,
            )
            return
        layout = self._layout()
        if {name: state["sampling"].get(name) for name in layout} != layout:
            logger.warning(
                "the checkpoint was written with %s and is resumed with %s: sampling the unfinished rollout again",
                state["sampling"],
                layout,
            )
            return
        absent = self._required_inputs - set((state["in_flight"] or [self._required_inputs])[0])
        if absent:
            logger.warning("the unfinished rollout has no %s, which this run reads: sampling it again", sorted(absent))
            return
        self._rollout_width = state["width"]
        self._step, self._steps_not_restored = state["step"], 0
        if "steering" in state:  # missing in checkpoints of 0.1
            self._restore_rollout_entropy(state["steering"])
        self._constant_rewards.in_a_row = state["constant_rollouts"]
        self._collapse.first = state.get("policy_reward_first", {})  # missing in checkpoints of 0.1
        self._buffered_inputs = send_to_device(state["in_flight"], self.accelerator.device)
        self._metrics["train"].update(state["metrics"])
        self._loss_to_log = state["loss_to_log"]
        given, weights = state["reward_weights"]
        if given == self.args.reward_weights:  # a callback may have changed the weights
            self.reward_weights = torch.tensor(weights)
        for name, rows in state["table"].items():
            self._logs[name].extend(rows)
        for name, columns in state["table_columns"].items():
            for column, rows in columns.items():
                self._logs[name][column].extend(rows)

    def _restore_fresh_prompts(self, state: dict[str, Any] | None) -> None:
        """Restore the position in the fresh prompts, from the main process, since a new rank has no file."""
        (position,) = broadcast_object_list([state["fresh_prompts"] if state is not None else None])
        self._batch_source.load_state_dict(position)

    def _restore_prompt_order(self) -> None:
        """Draw the permutations of past epochs again: TRL's sampler draws one per epoch, and a resume resets it."""
        if not isinstance(self.train_dataset, IterableDataset):  # a stream is shuffled by epoch
            for _ in range(int(self.state.epoch)):  # `EpochEnds` delays checkpoints past an epoch's end
                next(iter(self._prompt_sampler))
